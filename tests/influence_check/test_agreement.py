"""How well two lists of numbers agree, against scipy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from gradsift.influence_check.agreement import overlap, pearson, share_of_variance, spearman, top_rows


def rows_of(num_rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))


def test_correlations_are_those_of_scipy_with_ties_too() -> None:
    left_N = np.array([1.0, 2.0, 2.0, 5.0, -3.0, 2.0])
    right_N = np.array([0.5, 1.0, 7.0, 2.0, -1.0, 1.0])

    assert pearson(left_N, right_N) == pytest.approx(stats.pearsonr(left_N, right_N)[0])
    assert spearman(left_N, right_N) == pytest.approx(stats.spearmanr(left_N, right_N)[0])


def test_a_constant_has_no_correlation() -> None:
    assert math.isnan(pearson(np.ones(4), np.arange(4)))


def test_shares_of_variance_add_up_to_one() -> None:
    parts_2N = rows_of(2, 20).numpy()

    shares = [share_of_variance(part_N, parts_2N.sum(axis=0)) for part_N in parts_2N]

    assert sum(shares) == pytest.approx(1.0)


def test_overlap_of_the_best_rows() -> None:
    best = top_rows(torch.tensor([0.1, 0.9, 0.5, 0.8]), 0.5)

    assert best == {1, 3}
    assert overlap(best, {1, 2}) == 0.5
