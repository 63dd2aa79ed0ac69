"""Blocks: the rows of a shard as they stream by, a few at a time, in a buffer that is used again and again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from gradsift.errors import StoreDamaged
from gradsift.store.checksums import checksum
from gradsift.store.headers import Header, Rows

BLOCK_VALUES = 1 << 20
"""Values of a block: their float32 copies are 4 MB, which stay in a core's share of the cache."""
LEAST_BLOCK_ROWS = 32
"""Of longer rows a block has so many: each pass over the directions serves a block's rows alone …"""
MOST_BLOCK_VALUES = 1 << 22
"""… while they have no more values than these: 8 MB in float16 for each thread."""
QUANTISED_BLOCK_BYTES = 6 << 20
"""Bytes of a block of quantised rows, which are multiplied as they are: 384 rows of 131,072 values of 1 bit."""
BLOCKS_IN_SPAN = 8
U8 = torch.uint8


@dataclass(frozen=True)
class Span:
    """The rows `start` … `stop - 1` of a shard: what a thread reads and computes at a time, block by block."""

    header: Header
    block_rows: int
    start: int
    stop: int
    scales_R: Tensor
    norms_R: Tensor

    @property
    def num_rows(self) -> int:
        """R."""
        return self.stop - self.start


def spans_of(header: Header) -> Iterator[Span]:
    """A shard's rows in order. Raises StoreDamaged where the numbers beside them differ from their checksums."""
    rows = header.checks.block_rows if header.checks else block_rows(*header.form)
    scales_N, norms_N = _numbers(header)
    for start in range(0, header.num_rows, rows * BLOCKS_IN_SPAN):
        stop = min(start + rows * BLOCKS_IN_SPAN, header.num_rows)
        yield Span(header, rows, start, stop, scales_N[start:stop], norms_N[start:stop])


def block_rows(dtype: torch.dtype, width: int) -> int:
    """Rows that make a block, which are stored as `width` numbers of that dtype each."""
    if dtype == torch.int8:
        return max(1, QUANTISED_BLOCK_BYTES // width)
    return max(1, BLOCK_VALUES // width, min(LEAST_BLOCK_ROWS, MOST_BLOCK_VALUES // width))


def _numbers(header: Header) -> tuple[Tensor, Tensor]:
    """The scales and norms of a shard's rows, float32 [N] each."""
    found = []
    with _opened(header.path) as file:
        for name in ("scales", "norms"):
            rows = header.tensors[name]
            found.append(_read(file, rows, 0, torch.empty(rows.num_rows * rows.row_bytes, dtype=U8)))
    if header.checks:
        for numbers_N, before in zip(found, (header.checks.scales, header.checks.norms), strict=True):
            _require_sum(header.path, numbers_N, before)
    return found[0], found[1]


def _require_sum(path: Path, tensor: Tensor, before: str) -> None:
    if checksum(tensor) != before:
        raise StoreDamaged(f"{path}: differs from its checksum; delete it and manifest.json, and run again")


class SpanReader:
    """Reads spans into a buffer of its own: fresh memory would cost a page fault every 4 KB.

    Raises StoreDamaged where a file can't be read to the end of the span, or a block differs from its checksum.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=U8)

    def blocks(self, span: Span) -> Iterator[Tensor]:
        """The span's features as stored [R, …], block by block; each holds until the next one."""
        rows, checks = span.header.tensors["features"], span.header.checks
        self._make_room(span.block_rows * rows.row_bytes)
        with _opened(span.header.path) as file:
            for start in range(span.start, span.stop, span.block_rows):
                stop = min(start + span.block_rows, span.stop)
                _read_soon(file, rows, stop, min(stop + span.block_rows, span.stop))
                block = _read(file, rows, start, self._buffer[: (stop - start) * rows.row_bytes])
                if checks:
                    _require_sum(span.header.path, block, checks.features[start // span.block_rows])
                yield block

    def _make_room(self, size: int) -> None:
        if len(self._buffer) < size:
            self._buffer = torch.empty(size, dtype=U8)


def require_whole(header: Header) -> None:
    """Read a shard and hold every byte against its checksums. Raises StoreDamaged where one differs."""
    reader = SpanReader()
    for span in spans_of(header):
        for _ in reader.blocks(span):
            pass


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
