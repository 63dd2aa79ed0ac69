"""Influence of every pool row on a target: from feature blocks and target directions to scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn.functional import pad

from gradsift.errors import UserError
from gradsift.selection.normalization import Normalization, normalized
from gradsift.store import BITS, block_rows, packed_width, unpacked

MAX_INTEGER_DIM = 2**31 // (128 * 128)


class ScoreConfig(BaseModel):
    """How the examples of a target make one score."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subtasks: Literal["mean_of_cosines", "cosine_of_mean", "examples"] = "mean_of_cosines"
    """The authors' code; or the paper's text, the cosine with a subtask's mean gradient; or every example as a subtask
    of its own, as in RDS+ (arXiv 2503.01807): scores are then 4 bytes a pool row and example."""
    combine: Literal["max", "mean"] = "max"
    """From the subtasks' influences to the score."""
    normalize: Normalization = "none"
    """What is done to each subtask's scores over the pool before `combine` and the strategy see them: `center` (mean
    0), `zscore` (mean 0, variance 1) or `rank`; for every method's scores."""

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


def subtask_directions(
    features_VK: Tensor, norms_V: Tensor, subtasks: Sequence[str], names: Sequence[str], how: str
) -> Tensor:
    """One direction a subtask, float32 [G, K], so that a unit row's influence is its product with it.

    `cosine_of_mean`: the subtask's mean gradient, at unit norm; else the mean of its unit rows. Rows without a
    direction are left out; raises UserError where a subtask has no other.
    """
    usable_V = usable_rows(norms_V)
    directions = []
    for name in names:
        members = [row for row, subtask in enumerate(subtasks) if subtask == name and bool(usable_V[row])]
        if not members:
            raise UserError(f"subtask {name}: every example has a zero or non-finite gradient")
        rows_SK, norms_S = features_VK[members].float(), norms_V[members, None]
        if how == "cosine_of_mean":
            mean_K = rows_SK.mean(dim=0)
            directions.append(mean_K / torch.linalg.vector_norm(mean_K))
        else:
            directions.append((rows_SK / norms_S).mean(dim=0))
    return torch.stack(directions)


def influence_scores(features_RK: Tensor, norms_R: Tensor, directions_GK: Tensor) -> Tensor:
    """Inf(z, j) at one checkpoint, float32 [R, G]; NaN for rows without a direction. METHOD section 2."""
    blocks = features_RK.split(block_rows(features_RK.shape[1]))
    return Influence(directions_GK, "float32").scores(blocks, norms_R)


class Influence:
    """Inf(z, j) of blocks of rows at one checkpoint, in buffers of its own.

    A thread has one to itself: results don't depend on which block came before, nor on how many threads there are.
    """

    def __init__(self, directions_GK: Tensor, dtype: str) -> None:
        self._bits = BITS.get(dtype)
        self._levels = torch.empty(0, dtype=torch.int8)
        width = directions_GK.shape[1]
        if self._bits is None:
            self._products: Products = FloatProducts(directions_GK)
            return
        filled = packed_width(width, self._bits) * 8 // self._bits
        directions_GK = pad(directions_GK, (0, filled - width))  # what fills a row's last byte meets zeros
        self._products = (IntegerProducts if integers_are_fast(filled) else FloatProducts)(directions_GK)

    def scores(self, blocks: Iterable[Tensor], norms_R: Tensor) -> Tensor:
        """Float32 [R, G] of all blocks' rows as stored; NaN for those without a direction.

        `norms_R` are of the rows before their scale: norm / scale.
        """
        products_GR = torch.cat([self._products(self._unpacked(stored_SK)) for stored_SK in blocks], dim=1)
        products_GR.div_(norms_R).masked_fill_(~usable_rows(norms_R), float("nan"))
        return products_GR.T

    def _unpacked(self, stored_RK: Tensor) -> Tensor:
        if self._bits is None or self._bits == 8:
            return stored_RK
        rows, width = stored_RK.shape
        size = rows * width * 8 // self._bits
        if self._levels.numel() < size:
            self._levels = torch.empty(size, dtype=torch.int8)
        return unpacked(stored_RK, self._bits, self._levels[:size].view(rows, -1))


class Products(Protocol):
    """Products of stored rows with all directions."""

    def __init__(self, directions_GK: Tensor) -> None: ...
    def __call__(self, rows_RK: Tensor) -> Tensor:
        """Float32 [G, R]."""


class FloatProducts:
    """Products in float32, from a copy of the rows that stays in the core's cache."""

    def __init__(self, directions_GK: Tensor) -> None:
        self._directions_GK, self._buffer = directions_GK, torch.empty(0)

    def __call__(self, rows_RK: Tensor) -> Tensor:
        """Float32 [G, R]."""
        if self._buffer.numel() < rows_RK.numel():
            self._buffer = torch.empty(rows_RK.numel())
        copy_RK = self._buffer[: rows_RK.numel()].view(rows_RK.shape).copy_(rows_RK)
        return self._directions_GK @ copy_RK.T


class IntegerProducts:
    """Products of int8 rows, whose sums are exact, with directions rounded to 16 bits: two int8 planes.

    An entry is off by 1/65,278 of its direction's largest at most, so that a cosine with a random direction is off by
    4e-7 at K = 8192 (root of the mean square).
    """

    def __init__(self, directions_GK: Tensor) -> None:
        steps_G1 = directions_GK.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 32639
        levels_GK = (directions_GK / steps_G1).round()
        high_GK = ((levels_GK + 128) / 256).floor()  # what is left is in -128 … 127
        planes = torch.cat([high_GK, levels_GK - 256 * high_GK])
        self._planes_KP = planes.to(torch.int8).T.contiguous()
        self._steps_G = steps_G1[:, 0]

    def __call__(self, rows_RK: Tensor) -> Tensor:
        """Float32 [G, R]."""
        high_RG, low_RG = torch._int_mm(rows_RK, self._planes_KP).float().chunk(2, dim=1)
        return (low_RG + 256 * high_RG).mul_(self._steps_G).T


def integers_are_fast(dim: int) -> bool:
    """Whether this machine makes int8 products faster than float32 ones, exactly, and sums over `dim` fit 32 bits.

    Without VNNI instructions sums of two products may overflow their 16 bits.
    """
    supported = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    built_for = hasattr(torch, "_int_mm") and torch.backends.mkldnn.is_available()
    return built_for and bool(supported()) and dim <= MAX_INTEGER_DIM


def on_one_scale(scores_NG: Tensor, config: ScoreConfig) -> Tensor:
    """The pool's scores as `score.normalize` says, float32 [N, G]."""
    return torch.from_numpy(normalized(scores_NG.numpy(), config.normalize))


def combined(scores_NG: Tensor, how: str) -> tuple[Tensor, Tensor]:
    """The score [N] and the subtask with the largest influence [N] (the first of equals); NaN stays NaN."""
    best_N = scores_NG.nan_to_num(nan=-torch.inf).argmax(dim=1)
    return (scores_NG.amax(dim=1) if how == "max" else scores_NG.mean(dim=1)), best_N
