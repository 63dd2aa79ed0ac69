"""Feature stores: K numbers for every row, in shards that are either whole or absent.

`manifest.json`, written last, says what the rows mean and holds the checksum of every shard; until it is there,
`meaning.json` says what the shards already written mean. A shard names the rows it holds in its header, what they mean,
and the checksums of its bytes, so that nothing is believed of a shard that it doesn't say itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch import Tensor

from gradsift.errors import StoreDamaged, StoreMismatch
from gradsift.machine import MANIFEST, damaged, file_sha256, fingerprint, read_record
from gradsift.store.blocks import Span, require_whole, spans_of
from gradsift.store.headers import Header, read_header
from gradsift.store.meaning import BEFORE, JOINED_FIELDS, flattened
from gradsift.store.quantization import BITS, unpacked
from gradsift.store.rows import positions_in, require_known
from gradsift.store.shards import DTYPES, Shard, read_shard, row_form

FORMAT, FORMAT_VERSION = "gradsift feature store", 1
REMEDY = f"delete it and {MANIFEST}, and run again"


class FeatureStore:
    """A finished store, opened by its manifest; `keys`: (source, id) of the rows of its corpus, in order.

    It must hold them all, or those that its list of rows says. Raises StoreDamaged where there is none, or another
    number of rows, and where a shard that is read isn't the one that was written; StoreMismatch where the manifest has
    another format or version.
    """

    def __init__(self, folder: Path, keys: Sequence[tuple[str, str]] | None = None) -> None:
        if not (folder / MANIFEST).is_file():
            raise StoreDamaged(f"{folder}: no {MANIFEST} there: not a feature store, or an unfinished one")
        self.folder = folder
        self.manifest: dict[str, Any] = _manifest(folder / MANIFEST)
        self.positions = _positions(folder, self.manifest["shards"])
        """Of the rows in the corpus, in the order in which they are stored; None: all rows in theirs."""
        self.num_corpus_rows = self.num_rows if keys is None else len(keys)
        self._keys = None if keys is None else self._stored_keys(keys)
        self._meaning = fingerprint(self.meaning)
        self._bounds = list(accumulate((record["rows"] for record in self.manifest["shards"]), initial=0))

    def _stored_keys(self, keys: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        """Of the rows that it holds."""
        if self.positions is None:
            if len(keys) != self.num_rows:
                raise StoreDamaged(
                    f"{self.folder}: holds {self.num_rows} rows, not {len(keys)}: delete {MANIFEST}, run again"
                )
            return keys
        require_known(self.folder, self.positions, len(keys))
        return [keys[position] for position in self.positions]

    @property
    def shard_rows(self) -> dict[int, list[int]] | None:
        """Positions of the rows, by the place of their shard; None of a store of all rows."""
        if self.positions is None:
            return None
        return {place: self.positions[slice(*self._bounds[place : place + 2])] for place in range(self.num_shards)}

    def lacks(self, wanted: Iterable[int] | None) -> bool:
        """Whether it is without one of these rows of the corpus; None: of all."""
        if self.positions is None:
            return False
        return not set(self.positions).issuperset(range(self.num_corpus_rows) if wanted is None else wanted)

    @property
    def meaning(self) -> dict[str, Any]:
        """What the rows mean."""
        return self.manifest["meaning"]  # type: ignore[no-any-return]

    @property
    def num_rows(self) -> int:
        """N."""
        return int(self.manifest["num_rows"])

    @property
    def num_shards(self) -> int:
        """How many files."""
        return len(self.manifest["shards"])

    def shards(self) -> Iterator[Shard]:
        """The shards in order; a shard is read when its turn comes."""
        yield from map(self.shard, range(self.num_shards))

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
            yield from read_header(self.folder / record["file"]).keys

    def shard(self, index: int) -> Shard:
        """One shard, read now."""
        return read_shard(self._checked(index))

    def features(self, shard: Shard) -> Tensor:
        """A shard's features, float32 [R, K], whatever they are stored as."""
        stored_RK = shard.features_RK
        if self.dtype in BITS:
            stored_RK = unpacked(stored_RK, BITS[self.dtype])[:, : self.dim]
        return stored_RK.float() * shard.scales_R[:, None]

    def spans(self) -> Iterator[Span]:
        """The rows in order, some at a time, not read yet."""
        for index in range(self.num_shards):
            yield from spans_of(self._checked(index))

    def verify(self) -> None:
        """Check every shard against its checksums; raises StoreDamaged naming the first that differs."""
        for index, record in enumerate(self.manifest["shards"]):
            path = self.folder / record["file"]
            if not path.is_file():
                raise StoreDamaged(f"{path}: is missing; delete {MANIFEST}, and run again")
            _require_sha256(path, record["sha256"])
            require_whole(self._checked(index))

    def require_files(self) -> None:
        """Raise StoreDamaged where a shard is missing."""
        for record in self.manifest["shards"]:
            if not (self.folder / record["file"]).is_file():
                raise StoreDamaged(f"{self.folder / record['file']}: is missing; delete {MANIFEST}, and run again")

    def _checked(self, index: int) -> Header:
        """A shard's header, which says that it holds these rows in this form. One without checksums of its own was
        written before shards had them, and is held against the manifest's, whole."""
        record = self.manifest["shards"][index]
        header = read_header(self.folder / record["file"])
        require_described(header, self.meaning, self._meaning)
        keys = None if self._keys is None else self._keys[slice(*self._bounds[index : index + 2])]
        if header.num_rows != record["rows"] or (keys is not None and not header.holds(keys)):
            raise StoreDamaged(f"{header.path}: holds other rows than it should; {REMEDY}")
        if header.checks is None:
            _require_sha256(header.path, record["sha256"])
        return header


def require_described(header: Header, meaning: dict[str, Any], fingerprint_of_meaning: str) -> None:
    """Raise StoreDamaged where a shard says that its rows mean something else, or have another form."""
    if header.form != row_form(meaning):
        raise StoreDamaged(f"{header.path}: its rows are {header.form}, not {row_form(meaning)}; {REMEDY}")
    if header.checks is not None and header.checks.meaning != fingerprint_of_meaning:
        raise StoreDamaged(f"{header.path}: was made for another store; {REMEDY}")


def _require_sha256(path: Path, before: str) -> None:
    if file_sha256(path) != before:
        raise StoreDamaged(f"{path}: differs from its checksum; {REMEDY}")


def _manifest(path: Path) -> dict[str, Any]:
    facts = read_record(path, ("format", "version", "num_rows", "meaning", "shards")).facts
    for field, wanted in (("format", FORMAT), ("version", FORMAT_VERSION)):
        if facts[field] != wanted:
            raise StoreMismatch(field, facts[field], wanted, f"{path} against what this gradsift reads")
    try:
        num_rows = sum(_rows_in(record) for record in facts["shards"])
        form = facts["meaning"]["dtype"] in {*DTYPES, *BITS} and int(facts["meaning"]["projection"]["dim"]) > 0
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"its shards or meaning can't be read: {error!r}") from error
    if num_rows != facts["num_rows"] or not form:
        raise damaged(path, f"{facts['num_rows']} rows, {num_rows} in the shards it lists")
    return facts


def _positions(folder: Path, shards: Sequence[Mapping[str, Any]]) -> list[int] | None:
    rows = positions_in(folder, [record["file"] for record in shards])
    if rows is None:
        return None
    for record, positions in zip(shards, rows, strict=True):
        if len(positions) != record["rows"]:
            raise StoreDamaged(f"{folder / record['file']}: has {record['rows']} rows, {len(positions)} are listed")
    return [position for positions in rows for position in positions]


def _rows_in(record: dict[str, Any]) -> int:
    if not isinstance(record["file"], str) or not isinstance(record["sha256"], str):
        raise TypeError(record)
    return int(record["rows"])


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
