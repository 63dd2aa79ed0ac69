"""Orders of several methods made one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction

from gradsift.selection.fusion import fused


def naive(orders: Sequence[Sequence[int]]) -> list[int]:
    """Reciprocal rank fusion, a row at a time in exact fractions."""
    ranks = [{row: rank for rank, row in enumerate(order, start=1)} for order in orders]
    rows = [row for row in ranks[0] if all(row in own for own in ranks)]
    score = {row: sum(Fraction(1, 60 + own[row]) for own in ranks) for row in rows}
    return sorted(rows, key=lambda row: (-score[row], ranks[0][row]))


def shuffled(rows: Sequence[int], seed: int) -> list[int]:
    return random.Random(seed).sample(rows, len(rows))


def test_fusion_is_as_the_exact_one() -> None:
    for seed in range(30):
        orders = [shuffled(range(40), 3 * seed + method) for method in range(3)]
        assert list(fused(orders)) == naive(orders)


def test_one_order_stays_as_it_is() -> None:
    assert list(fused([[3, 0, 2]])) == [3, 0, 2]


def test_a_row_that_a_method_does_not_rank_is_left_out() -> None:
    for seed in range(10):
        orders = [shuffled(range(20), seed)[:15], shuffled(range(20), seed + 100)[:15]]
        assert list(fused(orders)) == naive(orders)
    assert list(fused([[0, 1], [2]])) == []
    assert list(fused([[], []])) == []


def test_equals_stand_as_the_first_method_has_them() -> None:
    assert list(fused([[0, 1], [1, 0]])) == [0, 1]
    assert list(fused([[1, 0], [0, 1]])) == [1, 0]


def test_a_row_that_one_method_puts_first_comes_far_up() -> None:
    first, other = list(range(1000)), list(range(999, -1, -1))
    assert set(list(fused([first, other]))[:10]) == {0, 1, 2, 3, 4, 995, 996, 997, 998, 999}
