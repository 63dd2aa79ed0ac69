"""What a shard says of itself in its header: where its tensors stand, whose rows they are, and their checksums."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradsift.errors import StoreDamaged
from gradsift.store.checksums import checksum

STORED_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""By their names in a safetensors header."""
TENSORS = ("features", "scales", "norms")
LENGTH_BYTES = 8


@dataclass(frozen=True)
class Rows:
    """A tensor of a shard: where it starts in the file, its dtype, and the columns of a row."""

    offset: int
    dtype: torch.dtype
    num_rows: int
    columns: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.columns) * self.dtype.itemsize


@dataclass(frozen=True)
class Checks:
    """What a shard's rows are held against: the fingerprint of their meaning, and checksums of the bytes."""

    meaning: str
    block_rows: int
    features: tuple[str, ...]
    """Of `block_rows` rows each, the last of what is left."""
    scales: str
    norms: str

    def dumps(self) -> str:
        """As it stands in the header."""
        return json.dumps(vars(self))


def checks_of(tensors: Mapping[str, Tensor], meaning: str, block_rows: int) -> Checks:
    """The checks of a shard's tensors; `meaning` is the fingerprint of what they mean."""
    sums = tuple(map(checksum, tensors["features"].split(block_rows)))
    return Checks(meaning, block_rows, sums, checksum(tensors["scales"]), checksum(tensors["norms"]))


@dataclass(frozen=True)
class Header:
    """A shard's header."""

    path: Path
    tensors: Mapping[str, Rows]
    metadata: Mapping[str, str]

    @property
    def num_rows(self) -> int:
        """R."""
        return self.tensors["features"].num_rows

    @property
    def form(self) -> tuple[torch.dtype, int]:
        """What a row is stored as: the tensor's dtype and its width."""
        features = self.tensors["features"]
        return features.dtype, math.prod(features.columns)

    @property
    def keys(self) -> list[tuple[str, str]]:
        """(source, id) of the rows. Raises StoreDamaged where they can't be read."""
        try:
            keys = list(zip(json.loads(self.metadata["sources"]), json.loads(self.metadata["ids"]), strict=True))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreDamaged(f"{self.path}: its rows' ids can't be read: {error!r}") from error
        return keys

    def holds(self, keys: Sequence[tuple[str, str]]) -> bool:
        """Whether its rows are these, in this order. Raises StoreDamaged where they can't be read."""
        sources, ids = zip(*keys, strict=True) if keys else ((), ())
        as_written = {"ids": rows_text(ids), "sources": rows_text(sources)}
        return as_written.items() <= self.metadata.items() or self.keys == list(keys)

    @cached_property
    def checks(self) -> Checks | None:
        """None of a shard that was written before shards had them. Raises StoreDamaged where they can't be read."""
        if "checks" not in self.metadata:
            return None
        try:
            facts = json.loads(self.metadata["checks"])
            checks = Checks(**{**facts, "features": tuple(facts["features"])})
            whole = len(checks.features) == -(-self.num_rows // checks.block_rows)
        except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            raise StoreDamaged(f"{self.path}: its checksums can't be read: {error!r}") from error
        if not whole:
            raise StoreDamaged(f"{self.path}: {len(checks.features)} checksums of {self.num_rows} rows")
        return checks


def rows_text(names: Sequence[str]) -> str:
    """Ids or sources as they stand in a header: comparing texts is three times as fast as reading them."""
    return json.dumps(list(names), ensure_ascii=False)


def read_header(path: Path) -> Header:
    """A shard's header. Raises StoreDamaged where it can't be read, promises too much, or disagrees with itself."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            described = json.loads(file.read(length)) if LENGTH_BYTES + length <= size else {}
        tensors = {name: _rows(described[name], LENGTH_BYTES + length, size) for name in TENSORS}
        header = Header(path, tensors, dict(described.get("__metadata__", {})))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreDamaged(f"{path}: can't be read: {error!r}") from error
    if len({rows.num_rows for rows in tensors.values()}) > 1:
        raise StoreDamaged(f"{path}: its tensors have different numbers of rows")
    return header


def _rows(facts: Mapping[str, Any], data_start: int, file_size: int) -> Rows:
    first, last = facts["data_offsets"]
    shape: Sequence[int] = facts["shape"]
    rows = Rows(data_start + first, STORED_DTYPES[facts["dtype"]], shape[0], tuple(shape[1:]))
    if data_start + last > file_size:
        raise ValueError(f"{file_size} bytes, {data_start + last} promised")
    if first < 0 or last - first != rows.num_rows * rows.row_bytes:
        raise ValueError(f"{last - first} bytes of a tensor of {shape}")
    return rows
