"""MMLU: its prompts are the authors', from every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradsift.errors import DataError
from gradsift.tasks.builtin import TASKS
from gradsift.tasks.mmlu import mmlu_prompt, validation_examples

from .conftest import AuthorsPrompts, WriteJsonl, tulu_prompt

CAPITAL: dict[str, Any] = {
    "subtask": "world_geography",
    "question": "Capital of Peru?",
    "choices": ["Quito", "Lima"],
    "answer": "B",
}
PROMPT = (
    "The following are multiple choice questions (with answers) about  world geography.\n\n"
    "Capital of Peru?\nA. Quito\nB. Lima\nAnswer:"
)


def write_csv(folder: Path, text: str, subject: str = "world_geography") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{subject}_dev.csv"
    file.write_bytes(text.encode())
    return file


def test_authors_folder_gives_the_authors_prompts_in_their_order(
    targets: Path, authors_prompts: AuthorsPrompts
) -> None:
    examples = validation_examples(targets / "mmlu_csv", "mmlu")
    assert [tulu_prompt(example) for example in examples] == authors_prompts("mmlu")


def test_jsonl_gives_the_same_prompts_and_subtasks_as_the_authors_folder(targets: Path) -> None:
    from_folder = validation_examples(targets / "mmlu_csv", "mmlu")
    from_jsonl = validation_examples(targets / "mmlu.jsonl", "mmlu")
    assert sorted((example.subtask, *tulu_prompt(example)) for example in from_jsonl) == sorted(
        (example.subtask, *tulu_prompt(example)) for example in from_folder
    )


def test_prompt_has_a_line_per_choice() -> None:
    assert mmlu_prompt("world_geography", "Capital of Peru?", ["Quito", "Lima"]) == PROMPT


def test_jsonl_row_becomes_an_example(write_jsonl: WriteJsonl) -> None:
    (example,) = TASKS["mmlu"].validation_examples(write_jsonl([CAPITAL]), "geo")
    assert example.messages == [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": " B"}]
    assert (example.id, example.source, example.row) == ("world_geography/0", "geo", 0)
    assert (example.subtask, example.prefill) == ("world_geography", "The answer is:")


@pytest.mark.parametrize("layout", ["", "dev", "mmlu/dev", "eval/mmlu/dev"])
def test_csv_is_found_from_every_reasonable_root(tmp_path: Path, layout: str) -> None:
    write_csv(tmp_path / layout, "Capital of Peru?,Quito,Lima,B\n")
    (example,) = validation_examples(tmp_path, "mmlu")
    assert tulu_prompt(example)[0].removeprefix("<|user|>\n").startswith(PROMPT)


def test_one_csv_file_is_a_target(tmp_path: Path) -> None:
    file = write_csv(tmp_path, "Capital of Peru?,Quito,Lima,B\nCapital of Chad?,N'Djamena,Abuja,A\n")
    assert [example.id for example in validation_examples(file, "mmlu")] == [
        "world_geography/0",
        "world_geography/1",
    ]


def test_subjects_come_in_the_order_of_their_names_not_of_their_files(tmp_path: Path) -> None:
    write_csv(tmp_path, "q,a,b,A\n", subject="law_x")
    write_csv(tmp_path, "q,a,b,A\n", subject="law")
    assert [example.subtask for example in validation_examples(tmp_path, "mmlu")] == ["law", "law_x"]


def test_csv_fields_stay_the_text_that_they_are(tmp_path: Path) -> None:
    file = write_csv(tmp_path, '"a ""b"",\r c",007,1.0,NA,C\r\n')
    (example,) = validation_examples(file, "mmlu")
    text = example.messages[0]["content"]
    assert text.endswith('\n\na "b",\r c\nA. 007\nB. 1.0\nC. NA\nAnswer:')


def test_csv_header_is_named_as_a_wrong_answer(tmp_path: Path) -> None:
    file = write_csv(tmp_path, "question,A,B,answer\nCapital of Peru?,Quito,Lima,B\n")
    with pytest.raises(DataError, match=r"_dev\.csv, line 1: the answer is 'answer'; .* letters A, B"):
        validation_examples(file, "mmlu")


def test_csv_error_names_the_line_that_its_row_begins_at(tmp_path: Path) -> None:
    file = write_csv(tmp_path, '"two\nlines",a,b,A\nno choices,A\n')
    with pytest.raises(DataError, match="line 3: 2 fields; a row is question, choices, answer"):
        validation_examples(file, "mmlu")


def test_broken_csv_is_refused(tmp_path: Path) -> None:
    file = write_csv(tmp_path, 'q,a,b,A\n"never closed,a,b,A\n')
    with pytest.raises(DataError, match="line 2: broken csv"):
        validation_examples(file, "mmlu")


def test_folder_without_csv_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no mmlu examples; looked for dev/\*_dev\.csv, .*eval/mmlu/dev"):
        validation_examples(tmp_path, "mmlu")


def test_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        validation_examples(tmp_path / "nowhere", "mmlu")


def test_csv_of_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "law_test.csv").write_text("q,a,b,A\n")
    with pytest.raises(DataError, match="nor a file of the authors' layout"):
        validation_examples(tmp_path / "law_test.csv", "mmlu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "C"}, "the answer is 'C'; it must be one of the letters A, B"),
        ({"answer": "AB"}, "the answer is 'AB'"),
        ({"answer": 1}, "field 'answer' is 1; it must be text"),
        ({"choices": "Lima"}, "field 'choices' is 'Lima'; it must be a list"),
        ({"choices": [1, 2]}, r"field 'choices' is \[1, 2\]; each choice must be text"),
        ({"choices": ["Lima"]}, "1 choices; a question has 2 to 26"),
        ({"question": " "}, "field 'question' is ' '; it must be text"),
    ],
)
def test_unusable_field_is_named_with_its_line(write_jsonl: WriteJsonl, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"line 2: {message}"):
        validation_examples(write_jsonl([CAPITAL, CAPITAL | change]), "mmlu")


def test_missing_field_is_named_with_the_fields_there_are(write_jsonl: WriteJsonl) -> None:
    row = {name: value for name, value in CAPITAL.items() if name != "choices"}
    message = "line 1: no field 'choices'; the fields there are: subtask, question, answer"
    with pytest.raises(DataError, match=message):
        validation_examples(write_jsonl([row]), "mmlu")


TEST_ROWS: list[dict[str, Any]] = [
    CAPITAL | {"split": "val", "id": "dev/10", "question": "Ten?"},
    CAPITAL | {"split": "val", "id": "dev/9", "question": "Nine?"},
    CAPITAL | {"split": "test", "id": "test/0"},
]


def test_test_question_is_asked_with_its_subjects_shots(write_jsonl: WriteJsonl) -> None:
    path = write_jsonl(TEST_ROWS)
    (question,) = TASKS["mmlu"].test_questions(path, path)
    assert question.messages(2)[0]["content"] == (
        "The following are multiple choice questions (with answers) about  world geography.\n\n"
        "Nine?\nA. Quito\nB. Lima\nAnswer: B\n\n"
        "Ten?\nA. Quito\nB. Lima\nAnswer: B\n\n"
        "Capital of Peru?\nA. Quito\nB. Lima\nAnswer:"
    )
    assert (question.prefill, question.choices) == ("The answer is:", (" A", " B"))
    assert (question.answers, question.completion) == (("B",), " B")


def test_letter_is_judged_with_its_space(write_jsonl: WriteJsonl) -> None:
    path = write_jsonl(TEST_ROWS)
    (question,) = TASKS["mmlu"].test_questions(path, path)
    judge = TASKS["mmlu"].EVALUATION.judge
    assert judge is not None
    assert (judge(question, " B"), judge(question, " A")) == ({"accuracy": 1.0}, {"accuracy": 0.0})


def test_authors_folder_and_jsonl_ask_the_same(targets: Path) -> None:
    from_folder = TASKS["mmlu"].test_questions(targets / "mmlu_csv", targets / "mmlu_csv")
    from_jsonl = TASKS["mmlu"].test_questions(targets / "mmlu.jsonl", targets / "mmlu.jsonl")
    prompts = {question.messages(5)[0]["content"] for question in from_folder}
    assert (len(from_folder), len(from_jsonl)) == (14042, 1140)
    assert all(question.messages(5)[0]["content"] in prompts for question in from_jsonl)


def test_held_out_questions_may_lie_in_a_file_of_their_own(write_jsonl: WriteJsonl, tmp_path: Path) -> None:
    shots = write_csv(tmp_path / "dev", "q,a,b,A\n")
    (question,) = TASKS["mmlu"].test_questions(write_jsonl([CAPITAL]), shots)
    assert (question.id, len(question.shots)) == ("world_geography/test/0", 1)


def test_nothing_is_held_out_where_rows_have_no_split(write_jsonl: WriteJsonl) -> None:
    path = write_jsonl([CAPITAL])
    with pytest.raises(DataError, match=r"no row has a split, so none is held out.* test_path"):
        TASKS["mmlu"].test_questions(path, path)


def test_a_subject_without_development_questions_is_refused(write_jsonl: WriteJsonl) -> None:
    path = write_jsonl([*TEST_ROWS, CAPITAL | {"split": "test", "subtask": "law"}])
    with pytest.raises(DataError, match="no validation example of 'law'"):
        TASKS["mmlu"].test_questions(path, path)
