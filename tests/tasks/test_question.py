from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradsift.errors import DataError
from gradsift.tasks.question import Question, Shots, ShotText, in_natural_order, natural_key, numbered

SOMEWHERE = Path("items.jsonl")


def question(**fields: Any) -> Question:
    defaults: dict[str, Any] = {
        "id": "q",
        "subtask": "s",
        "heading": "H. ",
        "shots": ("one ", "two "),
        "question": "Q?",
        "prefill": "A:",
        "answers": ("a",),
    }
    return Question(**{**defaults, **fields})


@pytest.mark.parametrize(
    ("num_shots", "text"), [(0, "H. Q?"), (1, "H. one Q?"), (2, "H. one two Q?"), (9, "H. one two Q?")]
)
def test_user_turn_takes_the_first_shots(num_shots: int, text: str) -> None:
    assert question().messages(num_shots) == [{"role": "user", "content": text}]


def test_history_comes_before_the_question() -> None:
    system = {"role": "system", "content": "Be short."}
    assert question(history=(system,)).messages(0) == [system, {"role": "user", "content": "H. Q?"}]


def test_a_question_of_history_alone_has_no_empty_turn() -> None:
    system = {"role": "system", "content": "Speak."}
    assert question(history=(system,), heading="", question="", shots=()).messages(0) == [system]


def test_passages_are_shortened_where_they_stand() -> None:
    whole = question(shots=("P: long text. ",), question="P: other text? Q?", passages=("long text", "other text"))
    shortened = whole.with_passages(lambda text: text.split()[0])
    assert (shortened.shots, shortened.question) == (("P: long. ",), "P: other? Q?")


def test_numbers_in_ids_are_sorted_as_numbers() -> None:
    assert sorted(["b/1", "a/10", "a/9", "a/x", "10"], key=natural_key) == ["10", "a/9", "a/10", "a/x", "b/1"]


def test_questions_are_sorted_by_their_ids() -> None:
    found = in_natural_order([question(id="q/10"), question(id="q/9")], SOMEWHERE)
    assert [item.id for item in found] == ["q/9", "q/10"]


def test_an_id_that_stands_twice_is_refused() -> None:
    with pytest.raises(DataError, match=r"items\.jsonl: two held-out items have the id 'q'"):
        in_natural_order([question(), question()], SOMEWHERE)


def test_no_question_is_refused() -> None:
    with pytest.raises(DataError, match=r"items\.jsonl: no held-out item"):
        in_natural_order([], SOMEWHERE)


def test_rows_without_an_id_are_numbered_within_their_subtask() -> None:
    assert numbered([("a", None), ("b", None), ("a", "mine"), ("a", None)], "test") == [
        "a/test/0",
        "b/test/0",
        "mine",
        "a/test/2",
    ]


def test_shots_come_in_the_order_of_their_ids() -> None:
    shots = Shots([ShotText("a", "10", "ten"), ShotText("b", "1", "other"), ShotText("a", "9", "nine")], SOMEWHERE)
    assert shots.of("a") == ("nine", "ten")


def test_a_subtask_without_shots_is_named() -> None:
    with pytest.raises(DataError, match="no validation example of 'law'"):
        Shots([ShotText("a", None, "x")], SOMEWHERE).of("law")
