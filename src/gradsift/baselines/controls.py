"""Controls, which know nothing of the target: `random`, `length`, and `full`, the whole pool."""

from __future__ import annotations

import numpy as np

from gradsift.baselines.texts import Scores, Texts


def random(texts: Texts) -> Scores:
    """Every order equally likely, the same for all subtasks: float32 [N, G]."""
    order_N = np.random.default_rng([texts.seed, len(texts.pool)]).permutation(len(texts.pool))
    # Whole numbers below 2^24 are exact in float32: no two rows are equal.
    return np.repeat(order_N[:, None].astype(np.float32), texts.num_subtasks, axis=1)


def length(texts: Texts) -> Scores:
    """Characters of the answers, the longest first, the same for all subtasks: float32 [N, G]."""
    length_N = np.array([len(answer) for answer in texts.answers], dtype=np.float32)
    return np.repeat(length_N[:, None], texts.num_subtasks, axis=1)


def full(texts: Texts) -> Scores:
    """All rows alike: float32 [N, G]."""
    return np.zeros((len(texts.pool), texts.num_subtasks), dtype=np.float32)
