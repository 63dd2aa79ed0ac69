"""Scores on one scale: against naive formulas, and the rows and subtasks that have none."""

from __future__ import annotations

from statistics import fmean, pstdev

import numpy as np
import numpy.typing as npt
import pytest

from gradsift.selection.normalization import NORMALIZATIONS, normalized

Scores = npt.NDArray[np.float32]
NAMES = ("center", "zscore", "rank")


def scores(num_rows: int = 40, seed: int = 0) -> Scores:
    """Three subtasks of different means and spreads, with equals among the rows."""
    drawn_NG = np.random.default_rng(seed).integers(0, 15, (num_rows, 3))
    return (drawn_NG * [0.001, 1.0, 50.0] + [3.0, 0.0, -7.0]).astype(np.float32)


def naive(column: list[float], how: str) -> list[float]:
    if how == "center":
        return [value - fmean(column) for value in column]
    if how == "zscore":
        return [(value - fmean(column)) / pstdev(column) for value in column]
    ordered = sorted(column)
    rank = {value: fmean(place for place, other in enumerate(ordered, 1) if other == value) for value in column}
    return [(rank[value] - 0.5) / len(column) - 0.5 for value in column]


@pytest.mark.parametrize("how", NAMES)
def test_each_subtask_is_put_on_its_scale_by_its_formula(how: str) -> None:
    given_NG = scores()
    for found_N, column_N in zip(normalized(given_NG, how).T, given_NG.T, strict=True):
        assert found_N.tolist() == pytest.approx(naive(column_N.tolist(), how), rel=1e-5, abs=1e-6)


def test_none_leaves_the_scores_as_they_are() -> None:
    given_NG = scores()
    assert normalized(given_NG, "none") is given_NG


@pytest.mark.parametrize("how", NAMES)
def test_a_subtasks_order_stays(how: str) -> None:
    for found_N, column_N in zip(normalized(scores(), how).T, scores().T, strict=True):
        order_N = np.argsort(column_N, kind="stable")
        assert (np.sign(np.diff(found_N[order_N])) == np.sign(np.diff(column_N[order_N]))).all()


@pytest.mark.parametrize("how", NAMES)
def test_rows_without_a_score_stay_without_and_change_nothing(how: str) -> None:
    given_NG = scores()
    missing_MG = np.array([[np.nan, np.nan, np.nan], [1e9, np.nan, 1e9], [np.inf, 0.0, 0.0]], dtype=np.float32)
    found_NG = normalized(np.concatenate([missing_MG, given_NG]), how)
    assert np.isnan(found_NG[:3]).all()
    assert np.array_equal(found_NG[3:], normalized(given_NG, how))


@pytest.mark.parametrize("how", NAMES)
def test_a_subtask_of_one_value_becomes_0(how: str) -> None:
    given_NG = np.full((7, 2), 0.1, dtype=np.float32)
    given_NG[:, 1] = range(7)
    assert (normalized(given_NG, how)[:, 0] == 0).all()


@pytest.mark.parametrize("how", NAMES)
@pytest.mark.parametrize("num_rows", [0, 1])
def test_no_row_or_one_is_no_matter(how: str, num_rows: int) -> None:
    assert normalized(scores(num_rows), how).tolist() == [[0.0, 0.0, 0.0]] * num_rows
    nothing_NG = np.full((2, 3), np.nan, dtype=np.float32)
    assert np.isnan(normalized(nothing_NG, how)).all()


def test_every_scale_is_asked_for_by_its_name() -> None:
    assert tuple(NORMALIZATIONS) == NAMES
