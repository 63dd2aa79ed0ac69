"""Fusion: the orders of several methods made one, by ranks alone, since their scores have nothing in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

RANK_OFFSET = 60
"""k of reciprocal rank fusion, the authors' value: how little the first ranks differ."""


def fused(orders: Sequence[Sequence[int]]) -> Iterator[int]:
    """Rows by the sum over methods of 1 / (60 + rank), the largest first; `orders` are rows, best first, by method.

    Reciprocal rank fusion, Cormack, Clarke and Büttcher, SIGIR 2009. Against a mean of ranks, a row that one method
    puts first comes far up however late another puts it: methods that fail on different targets are worth fusing.
    Deviates where a method doesn't rank a row: it is left out, and not only without that method's part. Equals stand
    as the first method has them.
    """
    rank_SM = _ranks(orders)
    ranked_M = np.flatnonzero(rank_SM.min(axis=0, initial=1))
    rank_SR = rank_SM[:, ranked_M]
    # Sorted, so that the sum is the same to the last bit whatever the methods' order.
    parts_SR = np.sort(1.0 / (RANK_OFFSET + rank_SR), axis=0)
    return iter(ranked_M[np.lexsort((rank_SR[0], -parts_SR.sum(axis=0)))].tolist())


def _ranks(orders: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """The rank from 1 that each method gives each row up to the largest one; 0 where it gives none."""
    num_rows = max((max(order, default=-1) for order in orders), default=-1) + 1
    rank_SM = np.zeros((len(orders), num_rows), dtype=np.int64)
    for rank_M, order in zip(rank_SM, orders, strict=True):
        rank_M[np.asarray(order, dtype=np.int64)] = np.arange(1, len(order) + 1)
    return rank_SM
