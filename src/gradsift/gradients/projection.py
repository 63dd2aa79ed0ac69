"""Projectors: from the blocks of a gradient, one LoRA matrix at a time, to K numbers an example.

A projector is additive over parameters and keyed by (seed, parameter name, position), so that the result doesn't
depend on batch, shard, worker, order or device. All its randomness comes from Philox, a counter-based generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, repeat
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from gradsift.errors import ConfigError
from gradsift.gradients.philox import philox
from gradsift.machine import compute_threads

PROJECTION_VERSION = 2
"""Raised whenever the numbers of a projector change: stores of two versions don't match."""

GATHERED_CHUNKS = 8
"""Above so many chunks a GPU adds all at once: filling up the last is little then, and calls are many."""

RADEMACHER_DIM = 8192
RADEMACHER_BLOCK_FLOATS = 1 << 19
"""Signs that a thread holds at once: 2 MB, as much as a core's cache."""
RADEMACHER_LANES = 8
SIGN_BIT, ONE_BITS = -(1 << 31), 0x3F800000
"""Of a float32: the bit of its sign, and 1.0."""


class ProjectionConfig(BaseModel):
    """What the rows of a store are projected with; part of their meaning."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["sketch", "rademacher", "identity"] = "sketch"
    dim: int = Field(131072, ge=1)
    """K; of `rademacher`, whose time grows with it, 8192 (the paper's) where it is left out. `identity` has no choice:
    its K is the number of LoRA parameters."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _dense_is_small(cls, value: Any) -> Any:
        is_dense = isinstance(value, Mapping) and value.get("kind") == "rademacher"
        return {"dim": RADEMACHER_DIM, **value} if is_dense else value


class Projector(Protocol):
    """Adds the projection of one parameter's block to the features."""

    dim: int

    def add(self, features_BK: Tensor, block_BOI: Tensor, parameter: str, start: int = 0) -> None:
        """Add the projection of `block_BOI` to `features_BK`, in place, in float32.

        The block may be a piece [B, D] of a flattened one, from the coordinate `start` on.
        """
        ...


class Identity:
    """The gradient itself: every parameter at its own offset, in the model's order. For tests and tiny models."""

    def __init__(self, config: ProjectionConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._offsets: dict[str, int] = {}
        self.dim = 0
        for name, shape in shapes.items():
            self._offsets[name] = self.dim
            self.dim += torch.Size(shape).numel()

    def add(self, features_BK: Tensor, block_BOI: Tensor, parameter: str, start: int = 0) -> None:
        """Add the block at the parameter's offset."""
        block_BD = block_BOI.flatten(1)
        first = self._offsets[parameter] + start
        features_BK[:, first : first + block_BD.shape[1]] += block_BD


@dataclass(frozen=True)
class SketchPlan:
    """The random choices of a sketch for one parameter: ±1 by position in the chunk, and ±1 and a shift by chunk."""

    position_signs: Tensor
    """int8 [num_chunks / K rounded up, K], or as few columns as the parameter has numbers: one row serves K chunks, as
    many as there are shifts."""
    chunk_signs: tuple[int, ...]
    shifts: tuple[int, ...]


class Sketch:
    """A count sketch in block-rolled form: K-long chunks of the flattened block, signed, each added at its own shift.

    Chunk c, position k goes to bucket (shift_c + k) mod K with sign a_c b_k. The shifts of a parameter are distinct,
    so two coordinates never meet with the same sign pattern around them: inner products are unbiased with variance
    at most (|x|²|y|² + (x·y)²) / (K - 1), as for independent signs, whatever the structure of the gradient. No index
    table, no atomics, sums in fixed order, one pass over the block, whose pieces give the bits of the whole.
    """

    def __init__(self, config: ProjectionConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.dim = config.dim
        self._seed, self._shapes = config.seed, shapes
        self._plans: dict[str, SketchPlan] = {}

    def add(self, features_BK: Tensor, block_BOI: Tensor, parameter: str, start: int = 0) -> None:
        """Add the sketch of the block."""
        block_BD, plan = block_BOI.flatten(1), self._plan(parameter, block_BOI.device)
        if block_BD.is_cuda and start % self.dim == 0 and block_BD.shape[1] > GATHERED_CHUNKS * self.dim:
            _add_gathered(features_BK, block_BD, plan, start // self.dim)
        else:
            _add_rolled(features_BK, block_BD, plan, start)

    def _plan(self, parameter: str, device: torch.device) -> SketchPlan:
        if parameter not in self._plans:
            plan = sketch_plan(self._seed, parameter, torch.Size(self._shapes[parameter]).numel(), self.dim)
            self._plans[parameter] = replace(plan, position_signs=plan.position_signs.to(device))
        return self._plans[parameter]


def _add_rolled(features_BK: Tensor, block_BD: Tensor, plan: SketchPlan, start: int) -> None:
    """Add the chunks one by one, or what of them is in the block, each in its two parts: one pass over the block."""
    dim, stop = features_BK.shape[1], start + block_BD.shape[1]
    signs = _Signs(plan.position_signs, dim, start, stop, block_BD.dtype)
    while start < stop:
        chunk, position = divmod(start, dim)
        part_BC, block_BD = block_BD.tensor_split([dim - position], dim=1)
        width, sign, bucket = part_BC.shape[1], plan.chunk_signs[chunk], (plan.shifts[chunk] + position) % dim
        signs_C = signs.of(chunk, position, width)
        head = min(width, dim - bucket)
        features_BK[:, bucket : bucket + head].addcmul_(part_BC[:, :head], signs_C[:head], value=sign)
        if head < width:
            features_BK[:, : width - head].addcmul_(part_BC[:, head:], signs_C[head:], value=sign)
        start += width


class _Signs:
    """The signs of the positions that a block meets, as floats, each made once however many chunks there are."""

    def __init__(self, position_signs: Tensor, dim: int, start: int, stop: int, dtype: torch.dtype) -> None:
        first, last = start // dim, (stop - 1) // dim
        self._dim, self._first_round = dim, first // dim
        self._first_position = start % dim if first == last else 0
        positions = slice(self._first_position, stop - last * dim if first == last else None)
        self._signs = position_signs[first // dim : last // dim + 1, positions].to(dtype)

    def of(self, chunk: int, position: int, width: int) -> Tensor:
        """Those of a chunk, [width] from the position on."""
        position -= self._first_position
        return self._signs[chunk // self._dim - self._first_round, position : position + width]


def _add_gathered(features_BK: Tensor, block_BD: Tensor, plan: SketchPlan, first_chunk: int) -> None:
    """Add all of many chunks in a handful of calls: for devices on which a call costs more than a pass over a chunk."""
    dim = features_BK.shape[1]
    num_chunks = -(-block_BD.shape[1] // dim)
    chunks = torch.arange(first_chunk, first_chunk + num_chunks)
    shifts_C = torch.tensor(plan.shifts)[chunks]
    signs_C = torch.tensor(plan.chunk_signs, dtype=torch.int8)[chunks]
    columns_CK = ((torch.arange(dim) - shifts_C[:, None]) % dim).to(block_BD.device)
    signs_CK = plan.position_signs[(chunks // dim).to(block_BD.device)] * signs_C[:, None].to(block_BD.device)
    padded_BD = torch.nn.functional.pad(block_BD, (0, num_chunks * dim - block_BD.shape[1]))
    signed_BCK = padded_BD.unflatten(1, (num_chunks, dim)) * signs_CK
    features_BK += signed_BCK.gather(2, columns_CK.expand_as(signed_BCK)).sum(dim=1)


def sketch_plan(seed: int, parameter: str, size: int, dim: int) -> SketchPlan:
    """Signs and shifts for a parameter of `size` numbers, on the CPU.

    Shift c of a round is the position of the c-th smallest of its K random words (of equal ones the first comes first).
    """
    num_chunks = -(-size // dim)
    num_rounds = -(-num_chunks // dim)
    key = philox_key(seed, parameter, "sketch")
    words = philox(key, 0, num_rounds * dim, torch.device("cpu")).view(num_rounds, dim, 4)
    position_signs = 1 - 2 * (words[:, :size, 0] & 1).to(torch.int8)
    chunk_signs = 1 - 2 * (words.view(-1, 4)[:num_chunks, 1] & 1)
    chunks_left = range(num_chunks, 0, -dim)
    shifts = [_smallest(words_K, min(left, dim)) for words_K, left in zip(words[..., 2], chunks_left, strict=True)]
    return SketchPlan(position_signs, tuple(chunk_signs.tolist()), tuple(torch.cat(shifts).tolist()))


def _smallest(words_K: Tensor, count: int) -> Tensor:
    """`words_K.argsort(stable=True)[:count]`; mostly a few of many are wanted, which needs no sort of all."""
    largest = words_K.topk(count, largest=False).values.amax()
    candidates = (words_K <= largest).nonzero()[:, 0]
    return candidates[words_K[candidates].argsort(stable=True)[:count]]


class Rademacher:
    """The dense ±1/√K matrix of the paper, made block by block from counters and never held as a whole."""

    def __init__(self, config: ProjectionConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.dim, self._seed = config.dim, config.seed

    def add(self, features_BK: Tensor, block_BOI: Tensor, parameter: str, start: int = 0) -> None:
        """Add block @ signs / √K.

        On a CPU in a fixed number of lanes, each summed by one thread: signs are made by one thread in any case, and
        the sums don't depend on how many threads there are.
        """
        block_BD = block_BOI.flatten(1)
        key = philox_key(self._seed, parameter, "rademacher")
        if block_BD.is_cuda:
            self._add_lane(features_BK, block_BD, key, start)
            return
        sums_LBK = features_BK.new_zeros(RADEMACHER_LANES, *features_BK.shape)
        lanes = block_BD.tensor_split(RADEMACHER_LANES, dim=1)
        starts = accumulate((lane_BD.shape[1] for lane_BD in lanes[:-1]), initial=start)
        with compute_threads() as threads:
            for _ in threads.in_order(lambda lane: self._add_lane(*lane), zip(sums_LBK, lanes, repeat(key), starts)):
                pass
        features_BK += sums_LBK.sum(dim=0)

    def _add_lane(self, sum_BK: Tensor, block_BD: Tensor, key: int, start: int) -> None:
        """Add the product with the signs of these coordinates, some at a time, so that signs stay in the cache."""
        step = max(1, RADEMACHER_BLOCK_FLOATS // self.dim)
        for first in range(0, block_BD.shape[1], step):
            part_BD = block_BD[:, first : first + step]
            signs_DK = rademacher_signs(key, start + first, part_BD.shape[1], self.dim, part_BD.device)
            sum_BK.addmm_(part_BD, signs_DK, alpha=self.dim**-0.5)


def rademacher_signs(key: int, start: int, rows: int, dim: int, device: torch.device) -> Tensor:
    """Signs of coordinates `start` … `start + rows - 1`, float32 [rows, dim]; each is one bit of its own counter.

    A row has W 32-bit words of its own counters; the sign of column s·W + w is bit 31 - s of word w. In that order
    32 numbers are made of a word by shifting it as a whole, moving its sign bit to that of 1.0.
    """
    num_counters = -(-dim // 256)
    words = philox(key, start * num_counters, rows * num_counters, device).view(torch.int32)
    shifts = torch.arange(32, dtype=torch.int32, device=device)
    bits = words.view(rows, 1, num_counters * 8) << shifts[:, None]
    signs = bits.bitwise_and_(SIGN_BIT).bitwise_or_(ONE_BITS).view(torch.float32)
    return signs.view(rows, num_counters * 256)[:, :dim]


def philox_key(seed: int, parameter: str, purpose: str) -> int:
    """A 64-bit key of its own for each (seed, parameter, purpose)."""
    text = f"gradsift/{PROJECTION_VERSION}/{purpose}/{seed}/{parameter}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


PROJECTORS: dict[str, type[Identity] | type[Sketch] | type[Rademacher]] = {
    "sketch": Sketch,
    "rademacher": Rademacher,
    "identity": Identity,
}


def build_projector(config: ProjectionConfig, shapes: Mapping[str, tuple[int, ...]]) -> Projector:
    """The projector for parameters of these shapes, given in the model's order."""
    if not shapes:
        raise ConfigError("there is no LoRA parameter to project")
    return PROJECTORS[config.kind](config, shapes)
