"""BBH: its prompts are the authors', from every layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gradsift.errors import DataError
from gradsift.tasks.bbh import Shot, bbh_prompt, extracted_answer, held_out_examples, parse_shots, validation_examples
from gradsift.tasks.builtin import TASKS

from .conftest import AuthorsPrompts, WriteJsonl, tulu_prompt

TEXT = "Add.\n\nQ: 1 + 1\nA: So 2.\n\nQ: 2 + 2\nA: So 4.\n\nQ: 3 + 3\nA: So 6."
SHOTS = [Shot("1 + 1", "So 2."), Shot("2 + 2", "So 4."), Shot("3 + 3", "So 6.")]
ROWS: list[dict[str, Any]] = [
    {"subtask": "sums", "description": "Add.", "prompt": shot.question, "cot": shot.reasoning} for shot in SHOTS
]
SECOND = "Add.\n\nQ: 1 + 1\nA: So 2.\n\nQ: 3 + 3\nA: So 6.\n\nQ: 2 + 2"


def write_three_shot(folder: Path, content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "bbh-three-shot.json"
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize("root", ["less_eval/bbh", "less_eval", "less_eval/bbh/bbh-three-shot.json"])
def test_authors_layout_gives_the_authors_prompts_in_their_order(
    targets: Path, authors_prompts: AuthorsPrompts, root: str
) -> None:
    examples = validation_examples(targets / root, "bbh")
    assert [tulu_prompt(example) for example in examples] == authors_prompts("bbh")


def test_jsonl_gives_the_same_prompts_and_subtasks_as_the_authors_folder(targets: Path) -> None:
    from_folder = validation_examples(targets / "less_eval" / "bbh", "bbh")
    from_jsonl = validation_examples(targets / "bbh.jsonl", "bbh")
    assert sorted((example.subtask, *tulu_prompt(example)) for example in from_jsonl) == sorted(
        (example.subtask, *tulu_prompt(example)) for example in from_folder
    )


def test_prompt_puts_the_shots_between_description_and_question() -> None:
    assert bbh_prompt(" Add.\n", [SHOTS[0], SHOTS[2]], "2 + 2") == SECOND


def test_prompt_without_shots_is_description_and_question() -> None:
    assert bbh_prompt("Add.", [], "2 + 2") == "Add.\n\nQ: 2 + 2"


def test_text_is_parsed_into_description_and_three_shots() -> None:
    assert parse_shots(TEXT) == ("Add.", SHOTS)


def test_description_keeps_its_blank_lines() -> None:
    assert parse_shots("All sums.\n\n" + TEXT)[0] == "All sums.\n\nAdd."


def test_shots_of_an_example_are_the_others_of_its_subtask_in_file_order(write_jsonl: WriteJsonl) -> None:
    other = {"subtask": "odd", "description": "Odd?", "prompt": "7", "cot": "yes."}
    path = write_jsonl([ROWS[0], other, ROWS[1], ROWS[2]])
    examples = TASKS["bbh"].validation_examples(path, "reason")
    assert [example.id for example in examples] == ["sums/0", "odd/0", "sums/1", "sums/2"]
    assert examples[1].messages[0]["content"] == "Odd?\n\nQ: 7"
    assert examples[2].messages == [
        {"role": "user", "content": SECOND},
        {"role": "assistant", "content": " So 4."},
    ]
    assert (examples[2].source, examples[2].row, examples[2].prefill) == ("reason", 2, "A:")


@pytest.mark.parametrize("layout", ["", "bbh", "eval/bbh"])
def test_three_shot_file_is_found_from_every_reasonable_root(tmp_path: Path, layout: str) -> None:
    write_three_shot(tmp_path / layout, {"sums": TEXT})
    examples = validation_examples(tmp_path, "bbh")
    assert [example.id for example in examples] == ["sums/0", "sums/1", "sums/2"]
    assert examples[1].messages[0]["content"] == SECOND


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT.removeprefix("Add.\n\n"), "task 'sums': 3 parts between blank lines"),
        (TEXT.replace("A: So 4.", "So 4."), "task 'sums': expected a shot .* not 'Q: 2"),
        (TEXT.replace("Q: 2", "2"), "task 'sums': expected a shot .* not '2 "),
        (TEXT.replace("So 4.", "So\nA: 4."), "task 'sums': expected a shot .* not 'Q: 2"),
        ("", "field 'sums' is ''"),
        (["Q"], r"field 'sums' is \['Q'\]"),
    ],
)
def test_text_without_three_shots_is_refused(tmp_path: Path, text: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        validation_examples(write_three_shot(tmp_path, {"sums": text}), "bbh")


def test_missing_reasoning_is_named_with_line_and_fields(write_jsonl: WriteJsonl) -> None:
    row = {"subtask": "sums", "description": "Add.", "prompt": "1", "answer": "1"}
    message = "line 4: no field 'cot'; the fields there are: subtask, description, prompt, answer"
    with pytest.raises(DataError, match=message):
        validation_examples(write_jsonl([*ROWS, row]), "bbh")


def test_folder_without_the_file_says_what_was_looked_for(tmp_path: Path) -> None:
    message = r"looked for bbh-three-shot\.json, bbh/bbh-three-shot\.json, eval/bbh/bbh-three-shot\.json"
    with pytest.raises(DataError, match=message):
        validation_examples(tmp_path, "bbh")


def held_out_row(**fields: Any) -> dict[str, Any]:
    return {"subtask": "sums", "description": "Add.", "prompt": "4 + 4", "answer": "8", "split": "test"} | fields


HELD_OUT = [row | {"split": "val"} for row in ROWS]


def test_test_question_is_asked_with_the_three_worked_examples(write_jsonl: WriteJsonl) -> None:
    path = write_jsonl([*HELD_OUT, held_out_row()])
    (question,) = TASKS["bbh"].test_questions(path, path)
    assert question.messages(3)[0]["content"] == f"{TEXT}\n\nQ: 4 + 4"
    assert (question.prefill, question.answers) == ("A:", ("8",))


def test_a_chain_of_thought_is_never_invented(write_jsonl: WriteJsonl) -> None:
    path = write_jsonl([*HELD_OUT, held_out_row(), held_out_row(cot="So the answer is 8.")])
    questions = TASKS["bbh"].test_questions(path, path)
    assert [question.completion for question in questions] == [None, " So the answer is 8."]


def test_authors_folder_is_read(tmp_path: Path) -> None:
    write_three_shot(tmp_path, {"sums": TEXT})
    (tmp_path / "bbh").mkdir()
    (tmp_path / "bbh" / "sums.json").write_text(json.dumps({"examples": [{"input": "4 + 4", "target": "8"}]}))
    (question,) = TASKS["bbh"].test_questions(tmp_path, tmp_path)
    assert (question.id, question.messages(3)[0]["content"]) == ("sums/test/0", f"{TEXT}\n\nQ: 4 + 4")


def test_the_three_shot_file_is_no_task_of_its_own(tmp_path: Path) -> None:
    write_three_shot(tmp_path / "bbh", {"sums": TEXT})
    with pytest.raises(DataError, match=r"holds no bbh examples; looked for bbh/\*\.json"):
        TASKS["bbh"].test_questions(tmp_path, tmp_path)


def test_a_task_without_worked_examples_is_named(tmp_path: Path) -> None:
    write_three_shot(tmp_path, {"sums": TEXT})
    (tmp_path / "bbh").mkdir()
    (tmp_path / "bbh" / "odd.json").write_text(json.dumps({"examples": [{"input": "4", "target": "no"}]}))
    with pytest.raises(DataError, match="know no task 'odd'; known: sums"):
        TASKS["bbh"].test_questions(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        (" Let's see. So the answer is (B).", "(B)"),
        ("THE ANSWER IS no. So the answer is yes.", "no"),
        (" the answer is 3.5.", "3"),  # up to the first full stop, as in the authors' code
        (" the answer is\n7.", "the answer is\n7."),
        (" yes ", "yes"),
        ("", ""),
    ],
)
def test_answer_stands_between_its_words_and_the_full_stop(output: str, answer: str) -> None:
    assert extracted_answer(output) == answer


@pytest.mark.parametrize(
    ("output", "gold", "exact", "verbatim"),
    [
        ("So the answer is (b).", "(B)", 1, 0),
        ("So the answer is (B).", "(B)", 1, 1),
        ("So the answer is Yes.", "yes", 1, 0),
        ("So the answer is no.", "yes", 0, 0),
        ("So the answer is > ).", "] }", 1, 0),  # the protocol sees a space on either side
    ],
)
def test_exact_match_is_blind_to_case_and_punctuation(
    write_jsonl: WriteJsonl, output: str, gold: str, exact: float, verbatim: float
) -> None:
    path = write_jsonl([*HELD_OUT, held_out_row(answer=gold)])
    (question,) = TASKS["bbh"].test_questions(path, path)
    judge = TASKS["bbh"].EVALUATION.judge
    assert judge is not None
    assert judge(question, output) == {"exact_match": exact, "exact_match_verbatim": verbatim}


def test_the_last_examples_of_a_task_are_held_out_and_stand_in_no_prompt(write_jsonl: WriteJsonl) -> None:
    file = write_jsonl(ROWS)
    kept = validation_examples(file, "bbh", hold_out=1)
    (held,) = held_out_examples(file, "bbh", hold_out=1)
    assert [example.messages[0]["content"] for example in kept] == [
        bbh_prompt("Add.", [SHOTS[1]], "1 + 1"),
        bbh_prompt("Add.", [SHOTS[0]], "2 + 2"),
    ]
    assert held.messages[0]["content"] == bbh_prompt("Add.", SHOTS[:2], "3 + 3")
    assert held.messages[1]["content"] == " So 6."


def test_holding_out_all_examples_is_refused(write_jsonl: WriteJsonl) -> None:
    with pytest.raises(DataError, match="sums has 3 examples: hold_out=3 leaves none to select for"):
        validation_examples(write_jsonl(ROWS), "bbh", hold_out=3)
