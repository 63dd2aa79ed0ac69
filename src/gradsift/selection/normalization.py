"""Scores of different subtasks on one scale, over the rows of a pool.

The mean of a subtask's scores holds what all rows have in common, the shared momentum term of Γ among it, and its
spread says how alike the rows are for it, not how good: neither should decide for which subtask rows are chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

Normalization = Literal["none", "center", "zscore", "rank"]

Column = npt.NDArray[np.float32]


def normalized(scores_NG: npt.NDArray[np.float32], how: Normalization) -> npt.NDArray[np.float32]:
    """The scores on one scale, subtask by subtask, float32 [N, G]; a subtask of one value becomes 0.

    `center`: mean 0; `zscore`: mean 0 and variance 1; `rank`: (r - (n + 1) / 2) / n, r from 1 for the smallest and
    equals sharing their mean rank; `none`: as they are. Rows that lack a finite score for some subtask count for
    nothing and have NaN for all.
    """
    if how == "none":
        return scores_NG
    is_scored_N = np.isfinite(scores_NG).all(axis=1)
    found_NG = np.full_like(scores_NG, np.nan)
    for subtask, column_N in enumerate(scores_NG.T):
        found_NG[is_scored_N, subtask] = NORMALIZATIONS[how](column_N[is_scored_N])
    return found_NG


def centred(column_N: Column) -> Column:
    """Mean 0; a column of one value becomes 0, which rounding might miss."""
    return np.zeros_like(column_N) if _is_constant(column_N) else (column_N - _mean(column_N)).astype(np.float32)


def standardized(column_N: Column) -> Column:
    """Mean 0 and variance 1; a column of one value, whose deviation rounding puts just above 0, becomes 0."""
    if _is_constant(column_N):
        return np.zeros_like(column_N)
    standard_N: Column = ((column_N - _mean(column_N)) / column_N.std(dtype=np.float64)).astype(np.float32)
    return standard_N


def ranked(column_N: Column) -> Column:
    """Ranks from -½ to ½, of mean 0; equals share the mean of their ranks."""
    _, place_N, count_V = np.unique(column_N, return_inverse=True, return_counts=True)
    mean_rank_V = np.cumsum(count_V) - (count_V - 1) / 2
    num_rows = len(column_N)
    rank_N: Column = ((mean_rank_V[place_N] - (num_rows + 1) / 2) / max(1, num_rows)).astype(np.float32)
    return rank_N


NORMALIZATIONS: dict[str, Callable[[Column], Column]] = {"center": centred, "zscore": standardized, "rank": ranked}


def _is_constant(column_N: Column) -> bool:
    return not len(column_N) or bool(column_N.min() == column_N.max())


def _mean(column_N: Column) -> np.float64:
    mean: np.float64 = column_N.mean(dtype=np.float64)
    return mean
