"""The total order of rows, and the budgets."""

from __future__ import annotations

import random

import numpy as np
import pytest
from pydantic import ValidationError

from gradsift.selecting import SelectConfig, ranking, select_top

IDS, SOURCES = ["b", "a", "c", "a", "d"], ["p", "q", "p", "p", "p"]
SCORES = np.array([0.5, 0.5, 0.9, 0.5, float("nan")])


def order(positions: list[int]) -> list[tuple[str, str]]:
    """The ranked keys of the rows, given in this order."""
    ids, sources = [IDS[index] for index in positions], [SOURCES[index] for index in positions]
    return [(ids[index], sources[index]) for index in ranking(SCORES[positions], ids, sources)]


def test_rows_are_ordered_by_score_then_id_then_source() -> None:
    assert order([0, 1, 2, 3, 4]) == [("c", "p"), ("a", "p"), ("a", "q"), ("b", "p")]


def test_the_order_does_not_depend_on_the_order_of_the_rows() -> None:
    for seed in range(20):
        positions = random.Random(seed).sample(range(5), 5)
        assert order(positions) == order([0, 1, 2, 3, 4])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_never_ranked(value: float) -> None:
    assert list(ranking(np.array([value, 0.1]), ["a", "b"], ["p", "p"])) == [1]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"fraction": 0.4}, 4),
        ({"fraction": 0.29}, 2),
        ({"fraction": 0.001}, 1),
        ({"count": 3}, 3),
        ({"count": 30}, 10),
        ({"tokens": 35}, 3),
        ({"tokens": 5}, 0),
        ({}, 1),
    ],
)
def test_budgets(settings: dict[str, float], expected: int) -> None:
    chosen = select_top(np.arange(10), np.full(10, 10), 10, SelectConfig.model_validate(settings))
    assert list(chosen) == list(range(expected))


def test_a_fraction_of_exactly_that_many_rows_is_not_rounded_away() -> None:
    assert len(select_top(np.arange(100), np.ones(100, int), 100, SelectConfig(fraction=0.29))) == 29


def test_two_budgets_are_refused() -> None:
    with pytest.raises(ValidationError, match="one of"):
        SelectConfig(fraction=0.1, count=3)
