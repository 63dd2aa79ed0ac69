"""How well two lists of numbers agree: correlations, shares of variance, and the overlap of their best rows."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def pearson(left_N: np.ndarray, right_N: np.ndarray) -> float:
    """Correlation; not a number where one side is constant."""
    left_N, right_N = (np.asarray(values, dtype=np.float64) for values in (left_N, right_N))
    left_N, right_N = left_N - left_N.mean(), right_N - right_N.mean()
    scale = np.sqrt((left_N @ left_N) * (right_N @ right_N))
    return float(left_N @ right_N / scale) if scale > 0 else float("nan")


def spearman(left_N: np.ndarray, right_N: np.ndarray) -> float:
    """Correlation of the ranks; equals share their mean rank."""
    return pearson(ranks(left_N), ranks(right_N))


def ranks(values_N: np.ndarray) -> np.ndarray:
    """Ranks from 0; equals share their mean rank."""
    _, inverse_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    mean_ranks: np.ndarray = np.cumsum(counts) - (counts + 1) / 2
    return mean_ranks[inverse_N]


def share_of_variance(part_N: np.ndarray, whole_N: np.ndarray) -> float:
    """Cov(part, whole) / Var(whole): the shares of parts that add up to the whole add up to 1."""
    part_N, whole_N = (np.asarray(values, dtype=np.float64) for values in (part_N, whole_N))
    variance = float(whole_N.var())
    return float(np.cov(part_N, whole_N, bias=True)[0, 1]) / variance if variance > 0 else float("nan")


def top_rows(scores_N: Tensor, fraction: float) -> set[int]:
    """Positions of the best `fraction` of the rows, at least one."""
    count = max(1, round(len(scores_N) * fraction))
    return set(scores_N.argsort(descending=True, stable=True)[:count].tolist())


def overlap(left: set[int], right: set[int]) -> float:
    """Share of the rows of one set that are in the other of the same size."""
    return len(left & right) / len(left)
