"""Files that are either whole or absent: atomic writes, checksums, and readers that name a damaged file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from gradsift.errors import RunFolderError

if TYPE_CHECKING:
    import pyarrow as pa


MANIFEST = "manifest.json"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed to `path`, synced, when the block succeeds.

    Raises RunFolderError where a file is in a folder's place, or a folder in the file's.
    """
    make_folder(path.parent)
    if path.is_dir():
        raise _in_the_way(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_open(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block succeeds."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file


def _in_the_way(folder: Path) -> RunFolderError:
    return RunFolderError(f"{folder}: is a folder where a file belongs: move it away")


def make_folder(folder: Path) -> None:
    """Make the folder and those above it. Raises RunFolderError where a file is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise RunFolderError(f"{error.filename}: is a file where a folder belongs: move it away") from error


def sync(path: Path) -> None:
    """Have the file, or a folder's entries, stand on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically. Keys keep their order; floats keep every digit."""
    with atomic_open(path) as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`. Raises RunFolderError where there is no JSON in it, or no file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except IsADirectoryError as error:
        raise _in_the_way(path) from error
    except FileNotFoundError as error:
        raise RunFolderError(f"{path}: is missing: run the command again that makes it") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"no valid JSON: {error}") from error


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in `path`, or some columns of it. Raises RunFolderError where the file is damaged or missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        if getattr(error, "errno", None) not in (None, errno.ENOENT):  # of the disk, not of the file
            raise
        raise damaged(path, f"no whole parquet file: {error}") from error
    lacking = set(columns or ()) - set(table.column_names)
    if lacking:
        raise damaged(path, f"has no column {min(lacking)}")
    return table


def damaged(path: Path, why: str) -> RunFolderError:
    """The error that names a damaged file and what to do about it."""
    return RunFolderError(f"{path}: is damaged ({why}): delete it to have it made again")


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half-written in `folder`, files and folders."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, its first 32 hex digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def first_difference(before: Any, now: Any, key: str, free: Collection[str] = ()) -> str | None:
    """The first dotted key in which two JSON values differ, with both values; None where they don't. `free` may."""
    if key in free or before == now:
        return None
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        pairs = [(name, before.get(name), now.get(name)) for name in {**before, **now}]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(str(index), *pair) for index, pair in enumerate(zip(before, now, strict=True))]
    else:
        return f"{key} was {before!r}, now {now!r}"
    found = (first_difference(left, right, f"{key}.{name}", free) for name, left, right in pairs)
    return next((difference for difference in found if difference), None)
