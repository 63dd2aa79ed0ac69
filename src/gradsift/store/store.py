"""Feature stores: K numbers for every row, in shards that are either whole or absent.

`manifest.json`, written last, says what the rows mean and holds the checksum of every shard; until it is there,
`meaning.json` says what the shards already written mean. A shard names the rows it holds in its header.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from gradsift.errors import StoreDamaged, StoreMismatch
from gradsift.machine import MANIFEST, file_sha256, read_json
from gradsift.store.blocks import Span, spans_of
from gradsift.store.meaning import BEFORE, JOINED_FIELDS, flattened
from gradsift.store.quantization import BITS, unpacked
from gradsift.store.shards import Shard, read_header, read_shard


class FeatureStore:
    """A finished store, opened by its manifest."""

    def __init__(self, folder: Path) -> None:
        if not (folder / MANIFEST).is_file():
            raise StoreDamaged(f"{folder}: no {MANIFEST} there: not a feature store, or an unfinished one")
        self.folder = folder
        self.manifest: dict[str, Any] = read_json(folder / MANIFEST)

    @property
    def meaning(self) -> dict[str, Any]:
        """What the rows mean."""
        return self.manifest["meaning"]  # type: ignore[no-any-return]

    @property
    def num_rows(self) -> int:
        """N."""
        return int(self.manifest["num_rows"])

    def shards(self) -> Iterator[Shard]:
        """The shards in order; a shard is read when its turn comes."""
        yield from map(self.shard, range(len(self.manifest["shards"])))

    @property
    def dtype(self) -> str:
        """Of a stored value: a key of DTYPES or of BITS."""
        return str(self.meaning["dtype"])

    @property
    def dim(self) -> int:
        """K."""
        return int(self.meaning["projection"]["dim"])

    def keys(self) -> Iterator[tuple[str, str]]:
        """(source, id) of every row, in order; only the shards' headers are read."""
        for record in self.manifest["shards"]:
            header = read_header(self.folder / record["file"])
            yield from zip(json.loads(header["sources"]), json.loads(header["ids"]), strict=True)

    def shard(self, index: int) -> Shard:
        """One shard, read now."""
        return read_shard(self.folder / self.manifest["shards"][index]["file"])

    def features(self, shard: Shard) -> Tensor:
        """A shard's features, float32 [R, K], whatever they are stored as."""
        stored_RK = shard.features_RK
        if self.dtype in BITS:
            stored_RK = unpacked(stored_RK, BITS[self.dtype])[:, : self.dim]
        return stored_RK.float() * shard.scales_R[:, None]

    def spans(self) -> Iterator[Span]:
        """The rows in order, some at a time, not read yet."""
        for record in self.manifest["shards"]:
            yield from spans_of(self.folder / record["file"], self.dim)

    def verify(self) -> None:
        """Check every shard against its checksum; raises StoreDamaged naming the first that differs."""
        for record in self.manifest["shards"]:
            path = self.folder / record["file"]
            if not path.is_file():
                raise StoreDamaged(f"{path}: is missing")
            if file_sha256(path) != record["sha256"]:
                raise StoreDamaged(f"{path}: differs from its checksum; delete it and {MANIFEST}, and run again")


def require_joinable(pool: FeatureStore, target: FeatureStore) -> None:
    """Raise StoreMismatch naming the first field in which two stores that are to be joined differ."""
    kind, target_kind = (store.meaning.get("representation", "gradients") for store in (pool, target))
    if kind != target_kind:
        raise StoreMismatch("representation", kind, target_kind, f"{pool.folder} against {target.folder}")
    if kind == "gradients" and target.meaning["gradient"] != "sgd":
        raise StoreMismatch("gradient", "sgd", target.meaning["gradient"], f"{target.folder}")
    left, right = BEFORE | flattened(pool.meaning), BEFORE | flattened(target.meaning)
    for field in sorted(left.keys() | right.keys()):
        if field.split(".")[0] in JOINED_FIELDS and left.get(field) != right.get(field):
            where = f"{pool.folder} against {target.folder}"
            raise StoreMismatch(field, left.get(field), right.get(field), where)
