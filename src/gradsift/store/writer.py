"""`StoreWriter`: writes a store shard by shard, in any order, from any number of processes; the manifest comes last."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from gradsift.errors import StoreDamaged
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
from gradsift.store.shards import row_form, shard_name
from gradsift.store.store import FORMAT, FORMAT_VERSION, FeatureStore, require_described

MEANING_FILE = "meaning.json"


class StoreWriter:
    """Writes a store shard by shard, in any order, from any number of processes.

    `quantized_from` is the dtype of the store whose rows these are; a finished one stands for that store.
    """

    def __init__(
        self,
        folder: Path,
        meaning: Mapping[str, Any],
        row_keys: Sequence[tuple[str, str]],
        shard_rows: int,
        quantized_from: str | None = None,
    ) -> None:
        self.folder, self.meaning, self._shard_rows = folder, json.loads(json.dumps(meaning)), shard_rows
        self._row_keys, self._quantized_from = row_keys, quantized_from
        self.num_shards = -(-len(row_keys) // shard_rows)

    def open(self) -> None:
        """Prepare the folder, and refuse one whose shards mean something else."""
        remove_leftovers(self.folder)
        described = self.folder / MEANING_FILE
        if described.is_file():
            require_same_meaning(read_record(described).facts, self.meaning, self.folder)
        else:
            write_record(described, self.meaning)

    def is_finished(self) -> bool:
        """Whether the manifest is there; refuses one that means something else, or lists other rows or lost shards.

        A store that was quantised from the one wanted will do.
        """
        if not (self.folder / MANIFEST).is_file():
            return False
        store = FeatureStore(self.folder, self._row_keys)
        store.require_files()
        found = store.meaning
        if store.manifest.get("quantized_from") == self.meaning["dtype"]:
            found = {**found, "dtype": self.meaning["dtype"]}
        require_same_meaning(found, self.meaning, self.folder)
        return True

    def bounds(self, shard: int) -> tuple[int, int]:
        """First row of a shard, and the row after its last."""
        return shard * self._shard_rows, min((shard + 1) * self._shard_rows, len(self._row_keys))

    def missing(self) -> list[int]:
        """The shards that are not there, or hold other rows than they should, or in another dtype."""
        return [shard for shard in range(self.num_shards) if not self._is_whole(shard)]

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
        start, stop = self.bounds(shard)
        header = read_header(self.folder / shard_name(shard))
        require_described(header, self.meaning, fingerprint(self.meaning))
        if header.num_rows != stop - start or not header.holds(self._row_keys[start:stop]):
            raise StoreDamaged(f"{header.path}: holds other rows than it should: delete it, and run again")
        return header

    def builder(self, shard: int) -> ShardBuilder:
        """What a shard's rows are put into before it is written."""
        start, stop = self.bounds(shard)
        return ShardBuilder(self.meaning, stop - start)

    def write(self, shard: int, features_RK: Tensor) -> None:
        """Store float32 features that are there all at once."""
        builder = self.builder(shard)
        builder.put(range(len(features_RK)), features_RK)
        self.write_built(shard, builder)

    def write_built(self, shard: int, builder: ShardBuilder) -> None:
        """Store a shard whose rows are all there."""
        start, stop = self.bounds(shard)
        keys, tensors = self._row_keys[start:stop], builder.tensors
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
        for shard in range(self.num_shards):
            header = self._checked(shard)
            require_whole(header)
            shards.append({"file": header.path.name, "rows": header.num_rows, "sha256": file_sha256(header.path)})
        facts = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "num_rows": len(self._row_keys),
            "meaning": self.meaning,
            "shards": shards,
        }
        if self._quantized_from is not None:
            facts["quantized_from"] = self._quantized_from
        write_record(self.folder / MANIFEST, facts)
        (self.folder / MEANING_FILE).unlink(missing_ok=True)
        return FeatureStore(self.folder)
