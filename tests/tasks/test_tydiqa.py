"""TyDiQA: its prompts are the authors', from every layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gradsift.errors import DataError
from gradsift.tasks.builtin import TASKS
from gradsift.tasks.tydiqa import WORDINGS, tydiqa_prompt, validation_examples

from .conftest import AuthorsPrompts, WriteJsonl, tulu_prompt

LIMA: dict[str, Any] = {
    "context": "Lima is the capital of Peru.",
    "question": "Capital of Peru?",
    "answers": [{"text": "Lima", "answer_start": 0}, {"text": "it is Lima", "answer_start": 0}],
}
PROMPT = (
    "Answer the following question based on the information in the given passage."
    "Passage: Lima is the capital of Peru.\nQuestion: Capital of Peru?"
)


def write_one_shot(folder: Path, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tydiqa-one-shot.json"
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("root", ["less_eval/tydiqa", "less_eval"])
def test_authors_folder_gives_the_authors_prompts_in_their_order(
    targets: Path, authors_prompts: AuthorsPrompts, root: str
) -> None:
    examples = validation_examples(targets / root, "tydiqa")
    assert [tulu_prompt(example) for example in examples] == authors_prompts("tydiqa")


def test_jsonl_gives_the_same_prompts_and_subtasks_as_the_authors_folder(targets: Path) -> None:
    from_folder = validation_examples(targets / "less_eval" / "tydiqa", "tydiqa")
    from_jsonl = validation_examples(targets / "tydiqa.jsonl", "tydiqa")
    assert sorted((example.subtask, *tulu_prompt(example)) for example in from_jsonl) == sorted(
        (example.subtask, *tulu_prompt(example)) for example in from_folder
    )


def test_prompt_follows_the_instruction_with_the_passage() -> None:
    assert tydiqa_prompt("english", LIMA["context"], LIMA["question"]) == PROMPT


def test_every_language_has_its_own_words() -> None:
    assert len(WORDINGS) == 9
    assert len({words.instruction for words in WORDINGS.values()}) == 9


def test_jsonl_row_becomes_an_example_of_its_first_answer(write_jsonl: WriteJsonl) -> None:
    path = write_jsonl([LIMA | {"subtask": "english", "split": "val", "id": 7}])
    (example,) = TASKS["tydiqa"].validation_examples(path, "qa")
    assert example.messages == [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": " Lima"},
    ]
    assert (example.id, example.source, example.row) == ("7", "qa", 0)
    assert (example.subtask, example.prefill) == ("english", "Answer:")


@pytest.mark.parametrize("layout", ["", "dev", "tydiqa", "tydiqa/dev", "eval/tydiqa", "eval/tydiqa/dev"])
def test_one_shot_file_is_found_from_every_reasonable_root(tmp_path: Path, layout: str) -> None:
    write_one_shot(tmp_path / layout, {"english": [LIMA]})
    (example,) = validation_examples(tmp_path, "tydiqa")
    assert (example.id, example.messages[0]["content"]) == ("english/0", PROMPT)


def test_the_one_shot_file_itself_is_a_target_whatever_its_name(tmp_path: Path) -> None:
    file = write_one_shot(tmp_path, {"english": [LIMA], "finnish": [LIMA | {"id": "f"}]})
    file = file.rename(tmp_path / "other.json")
    examples = validation_examples(file, "tydiqa")
    assert [(example.id, example.row, example.prefill) for example in examples] == [
        ("english/0", 0, "Answer:"),
        ("f", 1, "Vastaus:"),
    ]


def test_every_example_of_a_language_is_taken(tmp_path: Path) -> None:
    examples = validation_examples(write_one_shot(tmp_path, {"english": [LIMA, LIMA]}), "tydiqa")
    assert [example.id for example in examples] == ["english/0", "english/1"]


def test_unknown_language_is_refused_with_the_known_ones(write_jsonl: WriteJsonl) -> None:
    message = "line 1: unknown language 'klingon'; known: arabic, bengali, english, .*telugu"
    with pytest.raises(DataError, match=message):
        validation_examples(write_jsonl([LIMA | {"subtask": "klingon"}]), "tydiqa")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"english": [{"question": "q"}]}, "example 0 of 'english': no field 'context'"),
        ({"english": ["q"]}, "example 0 of 'english' is 'q', not an object"),
        ({"english": []}, r"field 'english' is \[\]; it must be a list that isn't empty"),
        ({"english": [LIMA | {"answers": ["Lima"]}]}, "first of the 'answers' is 'Lima'"),
        ({"english": [LIMA | {"answers": []}]}, r"field 'answers' is \[\]"),
        ([LIMA], "not a JSON object but list"),
        ({}, "a target without examples"),
    ],
)
def test_unusable_one_shot_file_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        validation_examples(write_one_shot(tmp_path, content), "tydiqa")


def test_broken_one_shot_file_is_named_with_the_line(tmp_path: Path) -> None:
    file = tmp_path / "tydiqa-one-shot.json"
    file.write_text('{"english":\n oops}')
    with pytest.raises(DataError, match=r"one-shot\.json, line 2: broken JSON"):
        validation_examples(file, "tydiqa")


def test_folder_without_the_file_says_what_was_looked_for(tmp_path: Path) -> None:
    message = r"no tydiqa examples; looked for dev/tydiqa-one-shot\.json, tydiqa-one-shot\.json"
    with pytest.raises(DataError, match=message):
        validation_examples(tmp_path, "tydiqa")


def write_held_out(folder: Path) -> Path:
    """The authors' two files, one question each."""
    write_one_shot(folder / "dev", {"english": [LIMA | {"question": "Which city?"}]})
    test = folder / "test" / "tydiqa-goldp-v1.1-dev.json"
    test.parent.mkdir()
    asked = {"id": "english-1-0", "question": LIMA["question"], "answers": LIMA["answers"]}
    content = {"data": [{"title": "Peru", "paragraphs": [{"context": LIMA["context"], "qas": [asked]}]}]}
    test.write_text(json.dumps(content))
    return folder


def test_test_question_is_asked_with_the_shot_of_its_language(tmp_path: Path) -> None:
    folder = write_held_out(tmp_path)
    (question,) = TASKS["tydiqa"].test_questions(folder, folder)
    assert question.messages(1)[0]["content"] == (
        "Answer the following question based on the information in the given passage.\n\n"
        "Passage: Lima is the capital of Peru.\nQuestion: Which city?\nAnswer: Lima\n\n"
        "Passage: Lima is the capital of Peru.\nQuestion: Capital of Peru?"
    )
    assert (question.prefill, question.completion) == ("Answer:", " Lima")
    assert question.answers == ("Lima", "it is Lima")
    assert (question.id, question.subtask) == ("english-1-0", "english")


def test_output_is_judged_by_the_best_gold_answer(tmp_path: Path) -> None:
    folder = write_held_out(tmp_path)
    (question,) = TASKS["tydiqa"].test_questions(folder, folder)
    judge = TASKS["tydiqa"].EVALUATION.judge
    assert judge is not None
    assert judge(question, " It is Lima.") == {"f1": 1.0, "exact_match": 1.0}


def test_authors_files_hold_all_test_questions(targets: Path) -> None:
    questions = TASKS["tydiqa"].test_questions(targets / "less_eval", targets / "less_eval")
    assert (len(questions), len({question.subtask for question in questions})) == (5077, 9)


def test_jsonl_and_the_authors_files_ask_the_same(targets: Path) -> None:
    from_files = TASKS["tydiqa"].test_questions(targets / "less_eval", targets / "less_eval")
    from_jsonl = TASKS["tydiqa"].test_questions(targets / "tydiqa.jsonl", targets / "tydiqa.jsonl")
    prompts = {question.messages(1)[0]["content"] for question in from_files}
    assert len(from_jsonl) == 270
    assert all(question.messages(1)[0]["content"] in prompts for question in from_jsonl)


def test_a_broken_squad_file_is_named(tmp_path: Path) -> None:
    folder = write_held_out(tmp_path)
    (folder / "test" / "tydiqa-goldp-v1.1-dev.json").write_text('{"data": [{"paragraphs": ["x"]}]}')
    with pytest.raises(DataError, match=r"dev\.json: article 0: field 'paragraphs' holds 'x', not an object"):
        TASKS["tydiqa"].test_questions(folder, folder)
