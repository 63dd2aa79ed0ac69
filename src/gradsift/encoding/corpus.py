"""`Corpus`: the encoded rows of a pool or target on disk, with the rows that were set aside and why.

A folder with `rows.parquet` (id, source, row, tokens, labels), `set_aside.jsonl`, and `manifest.json`, written last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gradsift.encoding.encoder import EncodedRow, SetAside
from gradsift.errors import RunFolderError
from gradsift.machine import (
    MANIFEST,
    atomic_open,
    atomic_path,
    damaged,
    read_parquet,
    read_record,
    renewed,
)

ROWS_FILE = "rows.parquet"
SET_ASIDE_FILE = "set_aside.jsonl"
PROMPTS_FILE = "prompts.json"
"""Of a target, written before its rows."""
ROW_GROUP = 1024
MAX_REASONS = 20
"""Reasons that a manifest counts one by one; those of rows that can't be read may be as many as the rows."""
KEYS = ("num_read", "num_rows", "num_tokens", "set_aside", "per_source", "fingerprint")

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),  # position in the pool, set-aside rows counted
        ("source_row", pa.int64()),  # position in its source
        ("subtask", pa.string()),
        ("num_tokens", pa.int32()),
        ("num_supervised", pa.int32()),
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
    ]
)


class Corpus:
    """Encoded rows, in the order in which they were read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._record = read_record(folder / MANIFEST, KEYS)
        self.manifest: dict[str, Any] = self._record.facts
        self._file: pq.ParquetFile | None = None

    @staticmethod
    def is_finished(folder: Path) -> bool:
        """Whether the folder holds a whole corpus."""
        return (folder / MANIFEST).is_file()

    @property
    def num_rows(self) -> int:
        """Rows that a gradient can be taken of."""
        return int(self.manifest["num_rows"])

    @property
    def num_read(self) -> int:
        """All rows, those set aside too."""
        return int(self.manifest["num_read"])

    def column(self, name: str) -> list[Any]:
        """One column, whole."""
        return self.table([name])[name].to_pylist()  # type: ignore[no-any-return]

    def table(self, names: Sequence[str]) -> pa.Table:
        """Some columns, whole, as an Arrow table."""
        table = read_parquet(self.folder / ROWS_FILE, names)
        if table.num_rows != self.num_rows:
            raise damaged(self.folder / MANIFEST, f"{self.num_rows} rows, {ROWS_FILE} has {table.num_rows}")
        return table

    @property
    def keys(self) -> list[tuple[str, str]]:
        """(source, id) of every row."""
        table = self.table(["source", "id"])
        return list(zip(table["source"].to_pylist(), table["id"].to_pylist(), strict=True))

    def require_whole(self) -> None:
        """Raise RunFolderError where a file isn't the one that was written."""
        changed = self._record.changed_file()
        if changed is not None:
            raise RunFolderError(
                f"{changed}: isn't what was written: delete {self.folder / MANIFEST}, and it is made again"
            )

    def rows(self, start: int, stop: int) -> list[EncodedRow]:
        """Rows `start` … `stop - 1`; only the row groups that hold them are read."""
        groups = range(start // ROW_GROUP, -(-stop // ROW_GROUP))
        table = self._opened().read_row_groups(list(groups))
        table = table.slice(start - groups.start * ROW_GROUP, stop - start)
        return [_encoded_row(record) for record in table.to_pylist()]

    def rows_at(self, positions: Sequence[int]) -> list[EncodedRow]:
        """The rows at these positions, in their order; only the row groups that hold them are read, one at a time."""
        by_group: dict[int, list[int]] = {}
        for position in positions:
            by_group.setdefault(position // ROW_GROUP, []).append(position)
        found = {position: row for group in sorted(by_group) for position, row in self._within(group, by_group[group])}
        return [found[position] for position in positions]

    def _within(self, group: int, positions: Sequence[int]) -> Iterator[tuple[int, EncodedRow]]:
        table = self._opened().read_row_group(group).take([position % ROW_GROUP for position in positions])
        return zip(positions, map(_encoded_row, table.to_pylist()), strict=True)

    def _opened(self) -> pq.ParquetFile:
        if self._file is None:
            self._file = pq.ParquetFile(self.folder / ROWS_FILE)
        return self._file


def _encoded_row(record: Mapping[str, Any]) -> EncodedRow:
    return EncodedRow(
        record["id"],
        record["source"],
        record["source_row"],
        record["subtask"],
        np.asarray(record["input_ids"], dtype=np.int32),
        np.asarray(record["labels"], dtype=np.int32),
    )


def write_corpus(folder: Path, results: Iterable[EncodedRow | SetAside], facts: Mapping[str, Any]) -> Corpus:
    """Write the rows as they come, a row group at a time; `facts` go into the manifest."""
    writer = _Writer()
    beside = [path for path in (folder / PROMPTS_FILE,) if path.is_file()]
    with (
        renewed(folder / MANIFEST, folder / ROWS_FILE, folder / SET_ASIDE_FILE, *beside) as record,
        atomic_path(folder / ROWS_FILE) as path,
        atomic_open(folder / SET_ASIDE_FILE) as aside,
        contextlib.closing(pq.ParquetWriter(path, SCHEMA, compression="zstd")) as parquet,
    ):
        for table in writer.tables(results):
            parquet.write_table(table, row_group_size=ROW_GROUP)
        for entry in writer.set_aside:
            aside.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        record |= {**facts, **writer.facts()}
    return Corpus(folder)


class _Writer:
    """Turns results into tables of one row group, counting and fingerprinting on the way."""

    def __init__(self) -> None:
        self.set_aside: list[dict[str, Any]] = []
        self._num_read = self._num_rows = self._num_tokens = 0
        self._per_source: dict[str, dict[str, int]] = {}
        self._lost_beginning: list[str] = []
        self._digest = hashlib.sha256()

    def tables(self, results: Iterable[EncodedRow | SetAside]) -> Iterator[pa.Table]:
        records: list[dict[str, Any]] = []
        for result in results:
            counts = self._per_source.setdefault(result.source, {"read": 0, "set_aside": 0})
            counts["read"] += 1
            if isinstance(result, SetAside):
                counts["set_aside"] += 1
                self.set_aside.append(self._aside(result))
            else:
                records.append(self._record(result))
            self._num_read += 1
            if len(records) == ROW_GROUP:
                yield pa.Table.from_pylist(records, schema=SCHEMA)
                records = []
        if records:
            yield pa.Table.from_pylist(records, schema=SCHEMA)

    def _aside(self, result: SetAside) -> dict[str, Any]:
        record = {"id": result.id, "source": result.source, "row": self._num_read, "reason": result.reason}
        return {**record, "place": result.place} if result.place else record

    def _record(self, result: EncodedRow) -> dict[str, Any]:
        self._num_rows += 1
        self._num_tokens += result.num_tokens
        if result.lost_beginning:
            self._lost_beginning.append(result.id)
        identity = json.dumps([result.source, result.id, result.subtask])
        self._digest.update(identity.encode() + result.input_ids.tobytes() + result.labels.tobytes())
        return {
            "id": result.id,
            "source": result.source,
            "row": self._num_read,
            "source_row": result.row,
            "subtask": result.subtask,
            "num_tokens": result.num_tokens,
            "num_supervised": result.num_supervised,
            "input_ids": result.input_ids,
            "labels": result.labels,
        }

    def facts(self) -> dict[str, Any]:
        return {
            "num_read": self._num_read,
            "num_rows": self._num_rows,
            "num_tokens": self._num_tokens,
            "set_aside": _most_common([record["reason"] for record in self.set_aside]),
            "lost_beginning": self._lost_beginning,
            "per_source": self._per_source,
            "fingerprint": self._digest.hexdigest()[:32],
        }


def _most_common(reasons: Sequence[str]) -> dict[str, int]:
    counts = Counter(reasons)
    shown = dict(counts.most_common(MAX_REASONS))
    others = counts.total() - sum(shown.values())
    return {**shown, "other reasons": others} if others else shown
