"""Shards: some rows of a store in one file; how rows are stored and read back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gradsift.errors import StoreDamaged
from gradsift.store.headers import TENSORS, Header, checks_of
from gradsift.store.quantization import BITS, packed, packed_width, quantized

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""Of stores that aren't quantised; those that are have a dtype in BITS."""

SMALL_FLOAT16, LARGE_FLOAT16 = 2.0**-6, 2.0**15


@dataclass(frozen=True)
class Shard:
    """Some rows of a store: features as stored [R, K], their scales and norms float32 [R].

    A row's feature is `features × scale`; its norm is of the float32 feature before it was stored, but of a quantised
    row that of `features × scale`. Quantised features are packed into bytes, [R, P].
    """

    ids: list[str]
    sources: list[str]
    features_RK: Tensor
    scales_R: Tensor
    norms_R: Tensor

    def part(self, start: int, stop: int) -> Shard:
        """Its rows `start` … `stop - 1`."""
        return Shard(*(values[start:stop] for values in vars(self).values()))


def row_bytes(dim: int, dtype: str) -> int:
    """Bytes of a stored row of `dim` values, with its scale and norm."""
    width = packed_width(dim, BITS[dtype]) if dtype in BITS else dim * DTYPES[dtype].itemsize
    return width + 8


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:05d}.safetensors"


def read_shard(header: Header) -> Shard:
    """One shard, held against its checksums; raises StoreDamaged where it differs from them or can't be read."""
    try:
        with safe_open(header.path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in TENSORS}
    except (SafetensorError, OSError) as error:
        raise StoreDamaged(f"{header.path}: can't be read: {error}") from error
    checks = header.checks
    if checks and checks_of(tensors, checks.meaning, checks.block_rows) != checks:
        raise StoreDamaged(f"{header.path}: differs from its checksums; delete it and manifest.json, and run again")
    sources, ids = zip(*header.keys, strict=True) if header.num_rows else ((), ())
    return Shard(list(ids), list(sources), *tensors.values())


def row_form(meaning: Mapping[str, Any]) -> tuple[torch.dtype, int]:
    """What a row is stored as: the tensor's dtype and its width."""
    dtype, dim = meaning["dtype"], meaning["projection"]["dim"]
    return (torch.int8, packed_width(dim, BITS[dtype])) if dtype in BITS else (DTYPES[dtype], dim)


def stored(features_RK: Tensor, dtype: str) -> dict[str, Tensor]:
    """A shard's tensors: `features` in that dtype, `scales` and `norms`; a row's don't depend on the rows beside it.

    The cosine of a quantised row is that of the row as it comes back, so its norm is too (QLESS normalises
    after quantising): with the norm from before, a row that lost length would lose influence.
    """
    if len(features_RK) == 1:  # torch spreads the sums over one row alone over its threads, which rounds otherwise
        return {name: tensor[:1] for name, tensor in stored(features_RK.repeat(2, 1), dtype).items()}
    if dtype in BITS:
        levels_RK, scales_R = quantized(features_RK, BITS[dtype])
        norms_R = scales_R * torch.linalg.vector_norm(levels_RK.float(), dim=1)
        return {"features": packed(levels_RK, BITS[dtype]), "norms": norms_R, "scales": scales_R}
    scales_R = storage_scales(features_RK, dtype)
    stored_RK = (features_RK / scales_R[:, None]).to(DTYPES[dtype])
    return {"features": stored_RK, "norms": torch.linalg.vector_norm(features_RK, dim=1), "scales": scales_R}


def storage_scales(features_RK: Tensor, dtype: str) -> Tensor:
    """A power of two for every row, float32 [R]: 1, unless float16 would lose the row.

    A target gradient of norm 1e-4 has entries below float16's normal range, and a large one passes its top. Such
    rows are stored divided by a power of two, which loses nothing; other dtypes have the range of float32.
    """
    scales_R = torch.ones(len(features_RK), device=features_RK.device)
    if dtype != "float16":
        return scales_R
    largest_R = features_RK.abs().amax(dim=1)
    outside_R = (largest_R < SMALL_FLOAT16) | (largest_R > LARGE_FLOAT16)
    outside_R &= (largest_R > 0) & largest_R.isfinite()
    powers_R = torch.exp2(torch.floor(torch.log2(largest_R.clamp(min=torch.finfo(torch.float32).tiny))))
    return torch.where(outside_R, powers_R, scales_R)


def stacked(shards: Iterable[Shard]) -> Shard:
    """All shards as one; for targets, which are small."""
    parts = list(shards)
    return Shard(
        [row_id for part in parts for row_id in part.ids],
        [source for part in parts for source in part.sources],
        torch.cat([part.features_RK for part in parts]),
        torch.cat([part.scales_R for part in parts]),
        torch.cat([part.norms_R for part in parts]),
    )
