"""`StoreWriter`: writes a store shard by shard, in any order, from any number of processes; the manifest comes last."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gradsift.machine import MANIFEST, atomic_path, file_sha256, read_json, remove_leftovers, write_json
from gradsift.store.blocks import STORED_DTYPES
from gradsift.store.meaning import require_same_meaning
from gradsift.store.quantization import BITS, packed_width
from gradsift.store.shards import DTYPES, shard_name, stored
from gradsift.store.store import FeatureStore

FORMAT_VERSION = 1
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
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        described = self.folder / MEANING_FILE
        if described.is_file():
            require_same_meaning(read_json(described), self.meaning, self.folder)
        else:
            write_json(described, self.meaning)

    def is_finished(self) -> bool:
        """Whether the manifest is there; refuses one that means something else.

        A store that was quantised from the one wanted will do.
        """
        if not (self.folder / MANIFEST).is_file():
            return False
        store = FeatureStore(self.folder)
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
        path = self.folder / shard_name(shard)
        if not path.is_file():
            return False
        try:
            with safe_open(path, framework="pt") as file:
                header, features = file.metadata(), file.get_slice("features")
                form = (STORED_DTYPES[features.get_dtype()], features.get_shape()[1])
        except SafetensorError:
            return False
        start, stop = self.bounds(shard)
        keys = zip(json.loads(header["sources"]), json.loads(header["ids"]), strict=True)
        return form == self._row_form() and list(keys) == list(self._row_keys[start:stop])

    def _row_form(self) -> tuple[torch.dtype, int]:
        """What a row is stored as: the tensor's dtype and its width."""
        dtype, dim = self.meaning["dtype"], self.meaning["projection"]["dim"]
        return (torch.int8, packed_width(dim, BITS[dtype])) if dtype in BITS else (DTYPES[dtype], dim)

    def write(self, shard: int, features_RK: Tensor) -> None:
        """Store float32 features as the meaning's dtype has them, and their norms."""
        start, stop = self.bounds(shard)
        keys = self._row_keys[start:stop]
        tensors = stored(features_RK, self.meaning["dtype"])
        metadata = {"ids": [row_id for _, row_id in keys], "sources": [source for source, _ in keys]}
        with atomic_path(self.folder / shard_name(shard)) as path:
            save_file(
                {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
                path,
                {name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items()},
            )

    def finish(self) -> FeatureStore:
        """Checksum the shards and write the manifest."""
        shards = []
        for shard in range(self.num_shards):
            start, stop = self.bounds(shard)
            path = self.folder / shard_name(shard)
            shards.append({"file": path.name, "rows": stop - start, "sha256": file_sha256(path)})
        facts = {
            "format": "gradsift feature store",
            "version": FORMAT_VERSION,
            "num_rows": len(self._row_keys),
            "meaning": self.meaning,
            "shards": shards,
        }
        if self._quantized_from is not None:
            facts["quantized_from"] = self._quantized_from
        write_json(self.folder / MANIFEST, facts)
        (self.folder / MEANING_FILE).unlink(missing_ok=True)
        return FeatureStore(self.folder)
