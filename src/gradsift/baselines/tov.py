"""`tov`, train on validation: rows whose loss falls most where the base is trained on the target's examples.

To first order a step on x lowers the loss on z as much as a step on z lowers that on x, so that one training on the
few examples and two forward passes over the pool stand for gradients of every row. Montanari, Jain, Sasoglu, arXiv
2510.00386 (ToV); Yang, He, Cheng, arXiv 2605.09404 (target-aligned paths). Of both papers only the abstracts and
others' summaries could be had when this was written.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

TOV = "tov"
"""The method's name."""

Drop = Literal["absolute", "relative"]


def loss_drop(before_N1: Tensor, after_N1: Tensor, how: Drop) -> Tensor:
    """How far each row's loss fell, the score: float32 [N, 1]; NaN where a loss is none, or it is relative to 0.

    Losses are means over a row's supervised tokens, in nats. `absolute`: before − after, arXiv 2510.00386; a rise is a
    negative score (its abstract takes the predictions that "change the most", its summaries the fall of the loss).
    `relative`: by the loss before, arXiv 2605.09404 ("normalized endpoint loss drop"; the norm is our reading).
    Deviates from 2510.00386 where that trains on a part of the pool before it takes the first loss, and draws some of
    the selection at random, or by bins of length: the loss before is the base's, and what is drawn is `select`'s to
    say.
    """
    drop_N1 = before_N1 - after_N1
    return drop_N1 / before_N1 if how == "relative" else drop_N1
