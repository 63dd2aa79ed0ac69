"""Feature stores: K numbers for every row, in shards that are either whole or absent.

`manifest.json`, written last, says what the rows mean and holds the checksum of every shard; until it is there,
`meaning.json` says what the shards already written mean. A shard names the rows it holds in its header.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gradsift.artifact import MANIFEST, atomic_path, file_sha256, read_json, remove_leftovers, write_json
from gradsift.blocks import STORED_DTYPES, Span, spans_of
from gradsift.errors import StoreDamaged, StoreMismatch
from gradsift.quantization import BITS, packed, packed_width, quantized, unpacked

FORMAT_VERSION = 1
MEANING_FILE = "meaning.json"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""Of stores that aren't quantised; those that are have a dtype in BITS."""

JOINED_FIELDS = (
    "embedder",
    "checkpoint",
    "base_model",
    "tokenizer",
    "template",
    "max_length",
    "parameters",
    "projection",
)
"""Fields of the meaning that a pool's and a target's store must share, besides their kind; a store of a representation
lacks some. What they don't: data, gradient, dtypes."""

SMALL_FLOAT16, LARGE_FLOAT16 = 2.0**-6, 2.0**15


@dataclass(frozen=True)
class Shard:
    """Some rows of a store: features as stored [R, K], their scales and norms float32 [R].

    A row's feature is `features × scale`; its norm is of the float32 feature before it was stored, but of a quantised
    row that of `features × scale`. Quantised features are packed into bytes, [R, P].
    """

    ids: list[str]
    sources: list[str]
    features_RK: Tensor
    scales_R: Tensor
    norms_R: Tensor


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
            header = _header(self.folder / record["file"])
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
    left, right = flattened(pool.meaning), flattened(target.meaning)
    for field in sorted(left.keys() | right.keys()):
        if field.split(".")[0] in JOINED_FIELDS and left.get(field) != right.get(field):
            where = f"{pool.folder} against {target.folder}"
            raise StoreMismatch(field, left.get(field), right.get(field), where)


def flattened(meaning: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in meaning.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


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
            _require_same_meaning(read_json(described), self.meaning, self.folder)
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
        _require_same_meaning(found, self.meaning, self.folder)
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


def _require_same_meaning(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    left, right = flattened(found), flattened(wanted)
    for field in sorted(left.keys() | right.keys()):
        if left.get(field) != right.get(field):
            where = f"{folder} was made with other settings than this run's"
            raise StoreMismatch(field, left.get(field), right.get(field), where)


def row_bytes(dim: int, dtype: str) -> int:
    """Bytes of a stored row of `dim` values, with its scale and norm."""
    width = packed_width(dim, BITS[dtype]) if dtype in BITS else dim * DTYPES[dtype].itemsize
    return width + 8


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:05d}.safetensors"


def read_shard(path: Path) -> Shard:
    """One shard; raises StoreDamaged where it isn't a whole safetensors file."""
    header = _header(path)
    with safe_open(path, framework="pt") as file:
        tensors = [file.get_tensor(name) for name in ("features", "scales", "norms")]
    return Shard(json.loads(header["ids"]), json.loads(header["sources"]), *tensors)


def _header(path: Path) -> Mapping[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata()  # type: ignore[no-any-return]
    except (SafetensorError, OSError) as error:
        raise StoreDamaged(f"{path}: can't be read: {error}") from error


def stored(features_RK: Tensor, dtype: str) -> dict[str, Tensor]:
    """A shard's tensors: `features` in that dtype, `scales` and `norms`.

    The cosine of a quantised row is that of the row as it comes back, so its norm is too (QLESS normalises
    after quantising): with the norm from before, a row that lost length would lose influence.
    """
    if dtype in BITS:
        levels_RK, scales_R = quantized(features_RK, BITS[dtype])
        norms_R = scales_R * torch.linalg.vector_norm(levels_RK.float(), dim=1)
        return {"features": packed(levels_RK, BITS[dtype]), "norms": norms_R, "scales": scales_R}
    scales_R = storage_scales(features_RK, dtype)
    stored_RK = (features_RK / scales_R[:, None]).to(DTYPES[dtype])
    return {"features": stored_RK, "norms": torch.linalg.vector_norm(features_RK, dim=1), "scales": scales_R}


def storage_scales(features_RK: Tensor, dtype: str) -> Tensor:
    """A power of two for every row, float32 [R]: 1, unless float16 would lose the row.

    A target gradient of norm 1e-4 has entries below float16's normal range, and a large one passes its top. Such
    rows are stored divided by a power of two, which loses nothing; other dtypes have the range of float32.
    """
    scales_R = torch.ones(len(features_RK), device=features_RK.device)
    if dtype != "float16":
        return scales_R
    largest_R = features_RK.abs().amax(dim=1)
    outside_R = (largest_R < SMALL_FLOAT16) | (largest_R > LARGE_FLOAT16)
    outside_R &= (largest_R > 0) & largest_R.isfinite()
    powers_R = torch.exp2(torch.floor(torch.log2(largest_R.clamp(min=torch.finfo(torch.float32).tiny))))
    return torch.where(outside_R, powers_R, scales_R)


def stacked(shards: Iterable[Shard]) -> Shard:
    """All shards as one; for targets, which are small."""
    parts = list(shards)
    return Shard(
        [row_id for part in parts for row_id in part.ids],
        [source for part in parts for source in part.sources],
        torch.cat([part.features_RK for part in parts]),
        torch.cat([part.scales_R for part in parts]),
        torch.cat([part.norms_R for part in parts]),
    )
