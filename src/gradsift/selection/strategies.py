"""Strategies: the order in which rows are taken, from their scores for every subtask.

A strategy sees M rows whose scores are all finite, in the order that breaks ties, and gives their positions, best
first, one at a time: a budget of 5 % never pays for the order of the rest. Subtasks are gone through by position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradsift.selection.normalization import normalized

VOTE_QUANTILE = 0.8
"""A row has a subtask's vote from this quantile of the subtask's scores on; ICONS' value."""


@dataclass(frozen=True)
class Candidates:
    """The scores of M rows."""

    score_M: npt.NDArray[np.float64]
    """The score that `score.combine` made of the subtasks'."""
    subtask_scores_MG: npt.NDArray[np.float32]


def top(candidates: Candidates) -> Iterator[int]:
    """By the score: the largest influence on any subtask under `score.combine=max`. LESS, arXiv 2402.04333."""
    return _by_keys(-candidates.score_M)


def mean(candidates: Candidates) -> Iterator[int]:
    """By the mean of the subtasks' scores, whatever `score.combine` says."""
    return _by_keys(-_mean_score(candidates))


def votes(candidates: Candidates) -> Iterator[int]:
    """By the number of subtasks among whose best fifth the row is; of one number, by the mean score.

    ICONS, arXiv 2501.00654. The mean decides because numbers from 0 to G leave most rows equal.
    """
    scores_MG = candidates.subtask_scores_MG
    if not len(scores_MG):
        return iter(())
    num_votes_M = (scores_MG >= np.quantile(scores_MG, VOTE_QUANTILE, axis=0)).sum(axis=1)
    return _by_keys(-num_votes_M, -_mean_score(candidates))


def round_robin(candidates: Candidates) -> Iterator[int]:
    """The subtasks take turns; each takes its best row that is not taken yet.

    RDS+, arXiv 2503.01807, and "A Critical Look at Targeted Instruction Selection", arXiv 2602.14696.
    """
    scores_MG = candidates.subtask_scores_MG
    heads = _Heads(scores_MG)
    for turn in range(len(scores_MG)):
        yield heads.best(turn % scores_MG.shape[1])


def bids(candidates: Candidates) -> Iterator[int]:
    """The row that lifts some subtask furthest above what the rows taken so far give it on average.

    BIDS, arXiv 2501.12147: with Z the scores at mean 0 and variance 1 in every subtask and T the rows taken,
    argmax over rows i of max over subtasks j of (Z_ij - mean of Z_kj over k in T). Deviates from the paper where
    its columns are single validation examples: ours are subtasks.
    """
    standard_MG = normalized(candidates.subtask_scores_MG, "zscore")
    heads = _Heads(standard_MG)
    sum_G = np.zeros(standard_MG.shape[1])
    for num_taken in range(len(standard_MG)):
        row = heads.best_above(sum_G / max(1, num_taken))
        sum_G += standard_MG[row]
        yield row


Strategy = Callable[[Candidates], Iterator[int]]

STRATEGIES: dict[str, Strategy] = {
    "top": top,
    "mean": mean,
    "round_robin": round_robin,
    "bids": bids,
    "votes": votes,
}


def _by_keys(*keys: npt.NDArray[np.float64] | npt.NDArray[np.int64]) -> Iterator[int]:
    """Positions by the first key, ascending, then the next, then as they stand."""
    return iter(np.lexsort(keys[::-1]).tolist())


def _mean_score(candidates: Candidates) -> npt.NDArray[np.float64]:
    mean_M: npt.NDArray[np.float64] = candidates.subtask_scores_MG.mean(axis=1, dtype=np.float64)
    return mean_M


class _Heads:
    """The best row of every subtask that is not taken yet: an order a subtask, and a pointer into each."""

    def __init__(self, scores_MG: npt.NDArray[np.float32]) -> None:
        num_rows, num_subtasks = scores_MG.shape
        self._scores_MG = scores_MG
        self._orders_GM = np.empty((num_subtasks, num_rows), dtype=np.int32)
        for subtask in range(num_subtasks):
            self._orders_GM[subtask] = np.argsort(-scores_MG[:, subtask], kind="stable")
        self._next_G = [0] * num_subtasks
        self._is_taken_M = bytearray(num_rows)
        self._bound_G = scores_MG.max(axis=0, initial=-np.inf).astype(np.float64)
        """The score at each pointer. Where that row has been taken since, the next one's is no larger."""

    def best(self, subtask: int) -> int:
        """Take the subtask's best row; there must be one left."""
        order_M, position = self._orders_GM[subtask], self._next_G[subtask]
        while self._is_taken_M[order_M[position]]:
            position += 1
        self._next_G[subtask] = position
        row = int(order_M[position])
        self._is_taken_M[row] = 1
        return row

    def best_above(self, level_G: npt.NDArray[np.float64]) -> int:
        """Take the row whose score is furthest above its subtask's level; there must be one left."""
        while True:
            subtask = int(np.argmax(self._bound_G - level_G))
            row = int(self._orders_GM[subtask, self._next_G[subtask]])
            if not self._is_taken_M[row]:
                self._is_taken_M[row] = 1
                return row
            self._next_G[subtask] += 1
            self._bound_G[subtask] = self._scores_MG[self._orders_GM[subtask, self._next_G[subtask]], subtask]
