"""Influence of every pool row on a target: from feature blocks and target directions to scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from gradsift.errors import UserError

ROWS_IN_CACHE = 128


class ScoreConfig(BaseModel):
    """How the examples of a target make one score."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subtasks: Literal["mean_of_cosines", "cosine_of_mean"] = "mean_of_cosines"
    """The authors' code, or the paper's text: the cosine with a subtask's mean gradient."""
    combine: Literal["max", "mean"] = "max"
    """From the subtasks' influences to the score."""


def usable_rows(norms_N: Tensor) -> Tensor:
    """Which rows have a direction: bool [N], False where the norm is zero, infinite or not a number."""
    return norms_N.isfinite() & (norms_N > 0)


def checkpoint_weights(learning_rates: Sequence[float]) -> list[float]:
    """w_i = η̄_i / Σ η̄, in the order given; raises UserError where no checkpoint has a learning rate above 0."""
    total = sum(learning_rates)
    if total <= 0:
        raise UserError(
            "no checkpoint was trained with a learning rate above 0 (a schedule's first step has 0): train on more "
            "rows or epochs, or set warmup.warmup_ratio=0"
        )
    return [rate / total for rate in learning_rates]


def subtask_directions(
    features_VK: Tensor, norms_V: Tensor, subtasks: Sequence[str], names: Sequence[str], how: str
) -> Tensor:
    """One direction a subtask, float32 [G, K], so that a unit row's influence is its product with it.

    `mean_of_cosines`: the mean of the subtask's unit rows. `cosine_of_mean`: its mean gradient, at unit norm.
    Rows without a direction are left out; raises UserError where a subtask has no other.
    """
    usable_V = usable_rows(norms_V)
    directions = []
    for name in names:
        members = [row for row, subtask in enumerate(subtasks) if subtask == name and bool(usable_V[row])]
        if not members:
            raise UserError(f"subtask {name}: every example has a zero or non-finite gradient")
        rows_SK, norms_S = features_VK[members].float(), norms_V[members, None]
        if how == "mean_of_cosines":
            directions.append((rows_SK / norms_S).mean(dim=0))
        else:
            mean_K = rows_SK.mean(dim=0)
            directions.append(mean_K / torch.linalg.vector_norm(mean_K))
    return torch.stack(directions)


def influence_scores(features_RK: Tensor, norms_R: Tensor, directions_GK: Tensor) -> Tensor:
    """Inf(z, j) at one checkpoint, float32 [R, G]; NaN for rows without a direction. METHOD section 2.

    Few rows at a time, so that their float32 copies stay in a core's cache.
    """
    buffer_SK = torch.empty(min(ROWS_IN_CACHE, len(features_RK)), features_RK.shape[1])
    products = [
        directions_GK @ buffer_SK[: len(rows_SK)].copy_(rows_SK).T for rows_SK in features_RK.split(ROWS_IN_CACHE)
    ]
    scores_RG = torch.cat(products, dim=1).T / norms_R[:, None]
    return scores_RG.masked_fill(~usable_rows(norms_R)[:, None], float("nan"))


def combined(scores_NG: Tensor, how: str) -> tuple[Tensor, Tensor]:
    """The score [N] and the subtask with the largest influence [N] (the first of equals); NaN stays NaN."""
    best_N = scores_NG.nan_to_num(nan=-torch.inf).argmax(dim=1)
    return (scores_NG.amax(dim=1) if how == "max" else scores_NG.mean(dim=1)), best_N
