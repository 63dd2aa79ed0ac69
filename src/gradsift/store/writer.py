"""`StoreWriter`: writes a store shard by shard, in any order, from any number of processes; the manifest comes last."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from gradsift.errors import StoreDamaged, UserError
from gradsift.machine import (
    MANIFEST,
    atomic_path,
    file_sha256,
    fingerprint,
    read_record,
    remove_leftovers,
    write_record,
)
from gradsift.store.blocks import block_rows, require_whole
from gradsift.store.builder import ShardBuilder
from gradsift.store.headers import Header, checks_of, read_header, rows_text
from gradsift.store.meaning import require_same_meaning
from gradsift.store.rows import ShardRows, all_rows, grown, list_rows, listed_rows, require_known
from gradsift.store.shards import row_form, shard_name
from gradsift.store.store import FORMAT, FORMAT_VERSION, FeatureStore, require_described

MEANING_FILE = "meaning.json"


class StoreWriter:
    """Writes a store shard by shard, in any order, from any number of processes.

    `row_keys` are of the corpus' rows; `rows` are those of them that the store is to hold, by shard; None: those listed
    beside its shards, else all. `quantized_from` is the dtype of the store whose rows these are; a finished one stands
    for that store.
    """

    def __init__(
        self,
        folder: Path,
        meaning: Mapping[str, Any],
        row_keys: Sequence[tuple[str, str]],
        shard_rows: int,
        quantized_from: str | None = None,
        rows: ShardRows | None = None,
    ) -> None:
        self.folder, self.meaning, self._shard_rows = folder, json.loads(json.dumps(meaning)), shard_rows
        self._row_keys, self._quantized_from = row_keys, quantized_from
        self._listed = listed_rows(folder) if rows is None else rows
        self._rows = all_rows(len(row_keys), shard_rows) if self._listed is None else self._listed
        if self._listed is not None:
            require_known(folder, (position for rows in self._rows.values() for position in rows), len(row_keys))

    @property
    def num_shards(self) -> int:
        """How many files."""
        return len(self._rows)

    def open(self, wanted: Collection[int] | None = None) -> None:
        """Prepare the folder for the rows that are wanted, None being all; refuse one whose shards mean something else.

        Rows that are there already are not made again, whether they are wanted or not.
        """
        remove_leftovers(self.folder)
        described = self.folder / MEANING_FILE
        if described.is_file():
            require_same_meaning(read_record(described).facts, self.meaning, self.folder)
        else:
            write_record(described, self.meaning)
        if wanted is not None or self._listed is not None:
            self._list(set(range(len(self._row_keys)) if wanted is None else wanted))

    def _list(self, wanted: set[int]) -> None:
        """List the shards that are there, those begun for nothing but wanted rows, and new ones for what they lack."""
        kept = {shard: rows for shard, rows in self._rows.items() if wanted.issuperset(rows) or self._is_whole(shard)}
        self._rows = self._listed = grown(kept, wanted, self._shard_rows)
        list_rows(self.folder, self._rows)

    def is_finished(self, wanted: Collection[int] | None = None) -> bool:
        """Whether the manifest is there, and lists the rows that are wanted (None: all), with others or without.

        Refuses one that means something else, or lists other rows or lost shards. A store that was quantised from the
        one wanted will do.
        """
        if not (self.folder / MANIFEST).is_file():
            return False
        store = FeatureStore(self.folder, self._row_keys)
        store.require_files()
        found = store.meaning
        if store.manifest.get("quantized_from") == self.meaning["dtype"]:
            found = {**found, "dtype": self.meaning["dtype"]}
        require_same_meaning(found, self.meaning, self.folder)
        lacks = store.lacks(wanted)
        if lacks and "quantized_from" in store.manifest:
            raise UserError(
                f"{self.folder}: was quantised, and lacks rows that are wanted now: put the store that it was made "
                "from back, or delete it to make it again"
            )
        return not lacks

    def rows(self, shard: int) -> Sequence[int]:
        """Positions in the corpus of a shard's rows."""
        return self._rows[shard]

    def missing(self) -> list[int]:
        """The shards that are not there, or hold other rows than they should, or in another dtype."""
        return [shard for shard in self._rows if not self._is_whole(shard)]

    def _keys(self, shard: int) -> list[tuple[str, str]]:
        return [self._row_keys[position] for position in self._rows[shard]]

    def _is_whole(self, shard: int) -> bool:
        if not (self.folder / shard_name(shard)).is_file():
            return False
        try:
            self._checked(shard)
        except StoreDamaged:
            return False
        return True

    def _checked(self, shard: int) -> Header:
        """A shard's header. Raises StoreDamaged where it isn't one of this store, or holds other rows."""
        header, keys = read_header(self.folder / shard_name(shard)), self._keys(shard)
        require_described(header, self.meaning, fingerprint(self.meaning))
        if header.num_rows != len(keys) or not header.holds(keys):
            raise StoreDamaged(f"{header.path}: holds other rows than it should: delete it, and run again")
        return header

    def builder(self, shard: int) -> ShardBuilder:
        """What a shard's rows are put into before it is written."""
        return ShardBuilder(self.meaning, len(self._rows[shard]))

    def write(self, shard: int, features_RK: Tensor) -> None:
        """Store float32 features that are there all at once."""
        builder = self.builder(shard)
        builder.put(range(len(features_RK)), features_RK)
        self.write_built(shard, builder)

    def write_built(self, shard: int, builder: ShardBuilder) -> None:
        """Store a shard whose rows are all there."""
        keys, tensors = self._keys(shard), builder.tensors
        metadata = {
            "ids": rows_text([row_id for _, row_id in keys]),
            "sources": rows_text([source for source, _ in keys]),
            "checks": checks_of(tensors, fingerprint(self.meaning), block_rows(*row_form(self.meaning))).dumps(),
        }
        with atomic_path(self.folder / shard_name(shard)) as path:
            save_file(dict(tensors), path, metadata)

    def finish(self) -> FeatureStore:
        """Hold the shards against their own checksums, and write the manifest with one of each file.

        Raises StoreDamaged where a shard was damaged since it was written: it would get a good checksum.
        """
        shards = []
        for shard in self._rows:
            header = self._checked(shard)
            require_whole(header)
            shards.append({"file": header.path.name, "rows": header.num_rows, "sha256": file_sha256(header.path)})
        facts = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "num_rows": sum(map(len, self._rows.values())),
            "meaning": self.meaning,
            "shards": shards,
        }
        if self._quantized_from is not None:
            facts["quantized_from"] = self._quantized_from
        write_record(self.folder / MANIFEST, facts)
        (self.folder / MEANING_FILE).unlink(missing_ok=True)
        return FeatureStore(self.folder)
