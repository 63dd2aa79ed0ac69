"""Selections that look at nothing: `random`, and `full`, the whole pool."""

from __future__ import annotations

import numpy as np

from gradsift.baselines.texts import Scores, Texts


def random(texts: Texts) -> Scores:
    """Every order equally likely, the same for all subtasks: float32 [N, G]."""
    order_N = np.random.default_rng([texts.seed, len(texts.pool)]).permutation(len(texts.pool))
    # Whole numbers below 2^24 are exact in float32: no two rows are equal.
    return np.repeat(order_N[:, None].astype(np.float32), texts.num_subtasks, axis=1)


def full(texts: Texts) -> Scores:
    """All rows alike: float32 [N, G]."""
    return np.zeros((len(texts.pool), texts.num_subtasks), dtype=np.float32)
