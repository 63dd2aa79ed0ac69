"""Which rows of a corpus a store holds, shard by shard: all of them in their order, or a list that can grow.

A store of some rows has a record `rows.json` beside its shards, written before them and kept. It grows by whole shards:
those that are there stay as they are, what is lacking goes into new ones, and the manifest, which lists the shards of
the finished store, is rewritten last. Wherever a process is killed, the old manifest is there with its shards, or the
new one with its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path

from gradsift.errors import StoreDamaged
from gradsift.machine import damaged, read_record, write_record
from gradsift.store.shards import shard_name

ROWS_FILE = "rows.json"

ShardRows = Mapping[int, Sequence[int]]
"""Positions in the corpus, by the number of the shard that holds them."""


def all_rows(num_rows: int, shard_rows: int) -> dict[int, Sequence[int]]:
    """Every row in its order, `shard_rows` a shard."""
    starts = range(0, num_rows, shard_rows)
    return {shard: range(start, min(start + shard_rows, num_rows)) for shard, start in enumerate(starts)}


def grown(made: ShardRows, wanted: Iterable[int], shard_rows: int) -> dict[int, Sequence[int]]:
    """The shards that there are and, under numbers that are free, new ones for the rows that they lack."""
    held = {position for rows in made.values() for position in rows}
    lacking = sorted(set(wanted) - held)
    free = (shard for shard in count() if shard not in made)
    new = {next(free): lacking[start : start + shard_rows] for start in range(0, len(lacking), shard_rows)}
    return dict(sorted({**made, **new}.items()))


def listed_rows(folder: Path) -> dict[int, Sequence[int]] | None:
    """What the folder's `rows.json` lists; None where there is none. Raises RunFolderError where it can't be read."""
    path = folder / ROWS_FILE
    if not path.is_file():
        return None
    listed = read_record(path, ("shards",)).facts["shards"]
    try:
        rows = {int(shard): [int(position) for position in positions] for shard, positions in listed.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise damaged(path, f"its rows can't be read: {error!r}") from error
    return dict(sorted(rows.items()))


def require_known(folder: Path, positions: Iterable[int], num_rows: int) -> None:
    """Raise StoreDamaged where a store lists rows that its corpus doesn't have."""
    if not all(0 <= position < num_rows for position in positions):
        raise StoreDamaged(f"{folder}: lists rows that there aren't: delete the folder, and run again")


def list_rows(folder: Path, rows: ShardRows) -> None:
    """Write `rows.json`."""
    write_record(folder / ROWS_FILE, {"shards": {str(shard): list(positions) for shard, positions in rows.items()}})


def positions_in(folder: Path, files: Sequence[str]) -> list[Sequence[int]] | None:
    """The rows of a finished store's shards, by the manifest's order of files; None of a store of all rows.

    Raises RunFolderError where `rows.json` doesn't list one of them.
    """
    listed = listed_rows(folder)
    if listed is None:
        return None
    by_file = {shard_name(shard): rows for shard, rows in listed.items()}
    unknown = next((file for file in files if file not in by_file), None)
    if unknown is not None:
        raise damaged(folder / ROWS_FILE, f"doesn't list the rows of {unknown}")
    return [by_file[file] for file in files]
