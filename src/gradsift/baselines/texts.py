"""`Texts`: what a baseline sees of the pool and a target, and the shape of what it gives back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]
"""[N, G]: how well every row of the pool suits every subtask; higher is better, NaN is never selected."""


@dataclass(frozen=True)
class Texts:
    """The pool and a target as texts; an example's text is its messages, one after the other."""

    pool: list[str]
    """N texts."""
    answers: list[str]
    """What the assistant says in each of the N."""
    target: list[str]
    """V texts."""
    subtasks: list[int]
    """Which of the G subtasks each of the V texts belongs to."""
    seed: int

    @property
    def num_subtasks(self) -> int:
        """G."""
        return max(self.subtasks) + 1
