"""Blocks: the rows of a shard as they stream by, a few at a time, in a buffer that is used again and again."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradsift.errors import StoreDamaged

BLOCK_VALUES = 1 << 20
"""Values of a block: their float32 copies are 4 MB, which stay in a core's share of the cache."""
BLOCKS_IN_SPAN = 8
STORED_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""By their names in a safetensors header."""
LENGTH_BYTES = 8
U8 = torch.uint8


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
class Span:
    """The rows `start` … `stop - 1` of a shard: what a thread reads and computes at a time, block by block."""

    path: Path
    tensors: dict[str, Rows]
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """R."""
        return self.stop - self.start


def spans_of(path: Path, dim: int) -> Iterator[Span]:
    """A shard's rows in order; raises StoreDamaged where the file isn't a whole shard. `dim`: values of a row."""
    tensors = _tensors(path)
    size = block_rows(dim) * BLOCKS_IN_SPAN
    num_rows = tensors["features"].num_rows
    for start in range(0, num_rows, size):
        yield Span(path, tensors, start, min(start + size, num_rows))


def block_rows(dim: int) -> int:
    """Rows of `dim` values that make a block."""
    return max(1, BLOCK_VALUES // dim)


class SpanReader:
    """Reads spans into a buffer of its own: fresh memory would cost a page fault every 4 KB.

    Raises StoreDamaged where a file can't be read to the end of the span.
    """

    def __init__(self, dim: int) -> None:
        self._block_rows = block_rows(dim)
        self._buffer = torch.empty(0, dtype=U8)

    def blocks(self, span: Span) -> Iterator[Tensor]:
        """The span's features as stored [R, …], block by block; each holds until the next one."""
        rows = span.tensors["features"]
        self._make_room(self._block_rows * rows.row_bytes)
        with _opened(span.path) as file:
            for start in range(span.start, span.stop, self._block_rows):
                stop = min(start + self._block_rows, span.stop)
                _read_soon(file, rows, stop, min(stop + self._block_rows, span.stop))
                yield _read(file, rows, start, self._buffer[: (stop - start) * rows.row_bytes])

    def numbers(self, span: Span, name: str) -> Tensor:
        """The `scales` or `norms` of the span's rows, float32 [R]."""
        rows = span.tensors[name]
        with _opened(span.path) as file:
            return _read(file, rows, span.start, torch.empty(span.num_rows * rows.row_bytes, dtype=U8))

    def _make_room(self, size: int) -> None:
        if len(self._buffer) < size:
            self._buffer = torch.empty(size, dtype=U8)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[FileIO]:
    try:
        with path.open("rb", buffering=0) as file:
            yield file
    except OSError as error:
        raise StoreDamaged(f"{path}: can't be read: {error}") from error
    except EOFError:
        raise StoreDamaged(f"{path}: ends too early") from None


def _read_soon(file: FileIO, rows: Rows, start: int, stop: int) -> None:
    """Have the kernel read these rows while others are computed, where it can.

    No further ahead: what was read long ago has left the processor's cache when it is copied from the kernel's.
    """
    if hasattr(os, "posix_fadvise") and start < stop:  # size 0 would be all of the file
        offset, size = rows.offset + start * rows.row_bytes, (stop - start) * rows.row_bytes
        os.posix_fadvise(file.fileno(), offset, size, os.POSIX_FADV_WILLNEED)


def _read(file: FileIO, rows: Rows, start: int, target_B: Tensor) -> Tensor:
    """Fill the bytes with rows from `start` on; as rows. Raises EOFError."""
    view, done = target_B.numpy().data, 0
    file.seek(rows.offset + start * rows.row_bytes)
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise EOFError
        done += count
    return target_B.view(rows.dtype).view(-1, *rows.columns)


def _tensors(path: Path) -> dict[str, Rows]:
    """Where the tensors of a shard stand. Raises StoreDamaged where its header can't be read or promises too much."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            header = json.loads(file.read(length)) if LENGTH_BYTES + length <= size else {}
        return {name: _rows(header[name], LENGTH_BYTES + length, size) for name in ("features", "scales", "norms")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreDamaged(f"{path}: can't be read: {error!r}") from error


def _rows(facts: dict[str, Any], data_start: int, file_size: int) -> Rows:
    first, last = facts["data_offsets"]
    shape: Sequence[int] = facts["shape"]
    if data_start + last > file_size:
        raise ValueError(f"{file_size} bytes, {data_start + last} promised")
    return Rows(data_start + first, STORED_DTYPES[facts["dtype"]], shape[0], tuple(shape[1:]))
