"""Projectors: from the blocks of a gradient, one LoRA matrix at a time, to K numbers an example.

A projector is additive over parameters and keyed by (seed, parameter name, position), so that the result doesn't
depend on batch, shard, worker, order or device. All its randomness comes from Philox, a counter-based generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gradsift.errors import ConfigError

PROJECTION_VERSION = 1
"""Raised whenever the numbers of a projector change: stores of two versions don't match."""

WORD = 0xFFFFFFFF
RADEMACHER_BLOCK_FLOATS = 1 << 21


class ProjectionConfig(BaseModel):
    """What the rows of a store are projected with; part of their meaning."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["sketch", "rademacher", "identity"] = "sketch"
    dim: int = Field(8192, ge=1)
    """K. `identity` has no choice: its K is the number of LoRA parameters."""
    seed: int = Field(0, ge=0)


class Projector(Protocol):
    """Adds the projection of one parameter's block to the features."""

    dim: int

    def add(self, features_BK: Tensor, block_BOI: Tensor, parameter: str) -> None:
        """Add the projection of `block_BOI` to `features_BK`, in place, in float32."""
        ...


class Identity:
    """The gradient itself: every parameter at its own offset, in the model's order. For tests and tiny models."""

    def __init__(self, config: ProjectionConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._offsets: dict[str, int] = {}
        self.dim = 0
        for name, shape in shapes.items():
            self._offsets[name] = self.dim
            self.dim += torch.Size(shape).numel()

    def add(self, features_BK: Tensor, block_BOI: Tensor, parameter: str) -> None:
        """Add the block at the parameter's offset."""
        block_BD = block_BOI.flatten(1)
        start = self._offsets[parameter]
        features_BK[:, start : start + block_BD.shape[1]] += block_BD


@dataclass(frozen=True)
class SketchPlan:
    """The random choices of a sketch for one parameter: ±1 by position in the chunk, and ±1 and a shift by chunk."""

    position_signs: Tensor
    """float32 [num_chunks / K rounded up, K]: one row serves K chunks, as many as there are shifts."""
    chunk_signs: tuple[int, ...]
    shifts: tuple[int, ...]


class Sketch:
    """A count sketch in block-rolled form: K-long chunks of the flattened block, signed, each added at its own shift.

    Chunk c, position k goes to bucket (shift_c + k) mod K with sign a_c b_k. The shifts of a parameter are distinct,
    so two coordinates never meet with the same sign pattern around them: inner products are unbiased with variance
    at most (|x|²|y|² + (x·y)²) / (K - 1), as for independent signs, whatever the structure of the gradient. No index
    table, no atomics, sums in fixed order, one pass over the block.
    """

    def __init__(self, config: ProjectionConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.dim, self._seed = config.dim, config.seed
        self._plans: dict[str, SketchPlan] = {}

    def add(self, features_BK: Tensor, block_BOI: Tensor, parameter: str) -> None:
        """Add the sketch of the block."""
        block_BD = block_BOI.flatten(1)
        plan = self._plan(parameter, block_BD)
        for chunk, chunk_BC in enumerate(block_BD.split(self.dim, dim=1)):
            sign, shift, width = plan.chunk_signs[chunk], plan.shifts[chunk], chunk_BC.shape[1]
            signs_C = plan.position_signs[chunk // self.dim, :width]
            head = min(width, self.dim - shift)
            features_BK[:, shift : shift + head].addcmul_(chunk_BC[:, :head], signs_C[:head], value=sign)
            if head < width:
                features_BK[:, : width - head].addcmul_(chunk_BC[:, head:], signs_C[head:], value=sign)

    def _plan(self, parameter: str, block_BD: Tensor) -> SketchPlan:
        if parameter not in self._plans:
            plan = sketch_plan(self._seed, parameter, block_BD.shape[1], self.dim)
            signs = plan.position_signs.to(block_BD.device)
            self._plans[parameter] = SketchPlan(signs, plan.chunk_signs, plan.shifts)
        return self._plans[parameter]


def sketch_plan(seed: int, parameter: str, size: int, dim: int) -> SketchPlan:
    """Signs and shifts for a parameter of `size` numbers, on the CPU."""
    num_chunks = -(-size // dim)
    num_rounds = -(-num_chunks // dim)
    words = philox(philox_key(seed, parameter, "sketch"), torch.arange(num_rounds * dim)).view(num_rounds, dim, 4)
    position_signs = 1.0 - 2.0 * (words[..., 0] & 1).float()
    chunk_signs = (1 - 2 * (words[..., 1] & 1)).flatten()[:num_chunks]
    shifts = words[..., 2].argsort(dim=1, stable=True).flatten()[:num_chunks]
    return SketchPlan(position_signs, tuple(chunk_signs.tolist()), tuple(shifts.tolist()))


class Rademacher:
    """The dense ±1/√K matrix of the paper, made block by block from counters and never held as a whole."""

    def __init__(self, config: ProjectionConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.dim, self._seed = config.dim, config.seed

    def add(self, features_BK: Tensor, block_BOI: Tensor, parameter: str) -> None:
        """Add block @ signs / √K, a few thousand coordinates at a time."""
        block_BD = block_BOI.flatten(1)
        step = max(1, RADEMACHER_BLOCK_FLOATS // self.dim)
        key = philox_key(self._seed, parameter, "rademacher")
        for start in range(0, block_BD.shape[1], step):
            part_BD = block_BD[:, start : start + step]
            signs_DK = rademacher_signs(key, start, part_BD.shape[1], self.dim, part_BD.device)
            features_BK.addmm_(part_BD, signs_DK, alpha=self.dim**-0.5)


def rademacher_signs(key: int, start: int, rows: int, dim: int, device: torch.device) -> Tensor:
    """Signs of coordinates `start` … `start + rows - 1`, float32 [rows, dim]; each is one bit of its own counter."""
    num_counters = -(-dim // 128)
    coordinates = torch.arange(start, start + rows, device=device)[:, None]
    columns = torch.arange(num_counters, device=device)[None, :]
    words = philox(key, coordinates, columns).to(torch.int32).contiguous()
    bytes_ = words.view(torch.uint8).reshape(-1).int()
    signs = torch.nn.functional.embedding(bytes_, _byte_signs(device))
    return signs.view(rows, num_counters * 128)[:, :dim]


def _byte_signs(device: torch.device) -> Tensor:
    bits = (torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)) & 1
    return 1.0 - 2.0 * bits.float()


def philox_key(seed: int, parameter: str, purpose: str) -> int:
    """A 64-bit key of its own for each (seed, parameter, purpose)."""
    text = f"gradsift/{PROJECTION_VERSION}/{purpose}/{seed}/{parameter}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def philox(key: int, counter0: Tensor, counter1: Tensor | int = 0) -> Tensor:
    """Philox4x32-10 (Salmon et al., SC 2011) of counters (counter0, counter1, 0, 0): int64 [..., 4] words < 2^32.

    Integer arithmetic only, so the same bits on every device.
    """
    zero = torch.zeros_like(counter0 + counter1)
    x0, x1, x2, x3 = counter0 + zero, counter1 + zero, zero, zero
    k0, k1 = key & WORD, key >> 32
    for _ in range(10):
        product0, product1 = x0 * 0xD2511F53, x2 * 0xCD9E8D57
        x0, x1, x2, x3 = (
            ((product1 >> 32) & WORD) ^ x1 ^ k0,
            product1 & WORD,
            ((product0 >> 32) & WORD) ^ x3 ^ k1,
            product0 & WORD,
        )
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return torch.stack((x0, x1, x2, x3), dim=-1)


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
