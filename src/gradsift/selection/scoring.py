"""Influence of every pool row on a target: from feature blocks and target directions to scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from gradsift.errors import UserError
from gradsift.selection.normalization import Normalization, normalized
from gradsift.selection.products import Products, Workspace, build_products


class ScoreConfig(BaseModel):
    """How the examples of a target make one score."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subtasks: Literal["mean_of_cosines", "cosine_of_mean", "examples"] = "mean_of_cosines"
    """The authors' code; or the paper's text, the cosine with a subtask's mean gradient; or every example as a subtask
    of its own, as in RDS+ (arXiv 2503.01807): scores are then 4 bytes a pool row and example."""
    combine: Literal["max", "mean"] = "max"
    """From the subtasks' influences to the score, which of the strategies `top` alone sees."""
    normalize: Normalization = "none"
    """What is done to each subtask's scores over the pool before `combine` and the strategy see them: `center` (mean
    0), `zscore` (mean 0, variance 1) or `rank`; for every method's scores. `top`, `mean` and `votes` see it; where
    subtasks take rows by turns it decides ties alone."""

    @property
    def decisive(self) -> dict[str, Any]:
        """The settings as fingerprints hold them: without what is as it was before there was the key, so that scores
        made then stay."""
        return self.model_dump(exclude={"normalize"} if self.normalize == "none" else set())


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


def scored_subtasks(ids: Sequence[str], subtasks: Sequence[str], how: str) -> tuple[list[str], list[str]]:
    """The subtask that each of V examples counts for, and the names of all in the order in which they take turns.

    Where every example is one of its own, the first of each subtask come before the second of any.
    """
    if how != "examples":
        return list(subtasks), sorted(set(subtasks))
    earlier: Counter[str] = Counter()
    turns = []
    for example, subtask in zip(ids, subtasks, strict=True):
        turns.append((earlier[subtask], subtask, example))
        earlier[subtask] += 1
    return list(ids), list(dict.fromkeys(example for _, _, example in sorted(turns)))


def usable_members(norms_V: Tensor, subtasks: Sequence[str], names: Sequence[str]) -> list[list[int]]:
    """Positions of each named subtask's rows that have a direction; raises UserError where one has none."""
    usable_V = usable_rows(norms_V).tolist()
    found = []
    for name in names:
        members = [row for row, subtask in enumerate(subtasks) if subtask == name and usable_V[row]]
        if not members:
            raise UserError(f"subtask {name}: every example has a zero or non-finite gradient")
        found.append(members)
    return found


def subtask_directions(
    features_VK: Tensor, norms_V: Tensor, subtasks: Sequence[str], names: Sequence[str], how: str
) -> Tensor:
    """One direction a subtask, float32 [G, K], so that a unit row's influence is its product with it.

    `cosine_of_mean`: the subtask's mean gradient, at unit norm; else the mean of its unit rows. Rows without a
    direction are left out; raises UserError where a subtask has no other.
    """
    directions = []
    for members in usable_members(norms_V, subtasks, names):
        rows_SK, norms_S = features_VK[members].float(), norms_V[members, None]
        if how == "cosine_of_mean":
            mean_K = rows_SK.mean(dim=0)
            directions.append(mean_K / torch.linalg.vector_norm(mean_K))
        else:
            directions.append((rows_SK / norms_S).mean(dim=0))
    return torch.stack(directions)


def influence_scores(features_RK: Tensor, norms_R: Tensor, directions_GK: Tensor) -> Tensor:
    """Inf(z, j) at one checkpoint, float32 [R, G]; NaN for rows without a direction. METHOD section 2."""
    return Influence(build_products(directions_GK, "float32")).scores([features_RK], norms_R)


class Influence:
    """Inf(z, j) of blocks of rows at one checkpoint, in memory of its own.

    A thread has one to itself: results don't depend on which block came before, nor on how many threads there are.
    `core` is held while a block is computed, not while it is read.
    """

    def __init__(self, products: Products, core: AbstractContextManager[object] | None = None) -> None:
        self._products, self._workspace, self._core = products, Workspace(), core or nullcontext()

    def scores(self, blocks: Iterable[Tensor], norms_R: Tensor) -> Tensor:
        """Float32 [R, G] of all blocks' rows as stored; NaN for those without a direction.

        `norms_R` are of the rows before their scale: norm / scale.
        """
        products_GR = torch.cat([self._of_block(stored_SP) for stored_SP in blocks], dim=1)
        products_GR.div_(norms_R).masked_fill_(~usable_rows(norms_R), float("nan"))
        return products_GR.T

    def _of_block(self, stored_SP: Tensor) -> Tensor:
        with self._core:
            return self._products(stored_SP, self._workspace)


def on_one_scale(scores_NG: Tensor, config: ScoreConfig) -> Tensor:
    """The pool's scores as `score.normalize` says, float32 [N, G]."""
    return torch.from_numpy(normalized(scores_NG.numpy(), config.normalize))


def combined(scores_NG: Tensor, how: str) -> tuple[Tensor, Tensor]:
    """The score [N] and the subtask with the largest influence [N] (the first of equals); NaN stays NaN."""
    best_N = scores_NG.nan_to_num(nan=-torch.inf).argmax(dim=1)
    return (scores_NG.amax(dim=1) if how == "max" else scores_NG.mean(dim=1)), best_N
