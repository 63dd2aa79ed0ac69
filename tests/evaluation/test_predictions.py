"""The metrics of many predictions."""

from __future__ import annotations

from typing import Any

import pytest

from gradsift.evaluation.predictions import Prediction, summarised
from gradsift.tasks.question import Question


def questions(count: int) -> list[Question]:
    return [Question(f"q/{index}", "ab"[index % 2], "", (), "?", "", ("x",)) for index in range(count)]


def prediction(subtask: str, score: float, nats: float = 1.0, tokens: int = 1, lost: int = 0) -> Prediction:
    return Prediction("x", subtask, "p", 0, lost, False, "o", ("a",), {"f1": score}, nats, tokens, 0)


UNEQUAL = [prediction("a", 1.0, nats=6.0, tokens=3), prediction("a", 1.0, lost=2), prediction("b", 0.0, nats=3.0)]


@pytest.mark.parametrize(("averaged_over", "expected"), [("questions", 2 / 3), ("subtasks", 1 / 2)])
def test_overall_figure_is_the_mean_that_the_protocol_wants(averaged_over: Any, expected: float) -> None:
    found = summarised(UNEQUAL, averaged_over)
    assert found["metrics"]["f1"] == pytest.approx(expected)
    assert {name: figures["metrics"]["f1"] for name, figures in found["subtasks"].items()} == {"a": 1.0, "b": 0.0}


def test_answer_loss_is_all_nats_by_all_tokens() -> None:
    found = summarised(UNEQUAL, "subtasks")
    assert found["answer_loss"]["nats_per_token"] == pytest.approx(10 / 5)
    assert found["subtasks"]["a"]["answer_loss"]["nats_per_token"] == pytest.approx(7 / 4)


def test_lost_shots_are_counted() -> None:
    assert summarised(UNEQUAL, "questions")["counts"] == {
        "questions": 3,
        "with_lost_shots": 1,
        "lost_shots": 2,
        "cut": 0,
    }
