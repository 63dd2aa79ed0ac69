"""Shards that aren't what was written, or stand in another's place, are named before a score is made of them."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import without_checks
from safetensors import safe_open
from safetensors.torch import save_file

from gradsift.errors import RunFolderError, StoreDamaged, StoreMismatch
from gradsift.machine.records import read_record, write_record
from gradsift.stages.score import TargetSide, pool_influences
from gradsift.store import blocks
from gradsift.store.checksums import LANES, checksum
from gradsift.store.quantization import BITS
from gradsift.store.store import FeatureStore
from gradsift.store.writer import StoreWriter

KEYS = [("pool", f"row-{index}") for index in range(30)]
DIM = 40
SHARD = "shard-00001.safetensors"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of three rows, spans of two blocks."""
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 3 * DIM)
    monkeypatch.setattr(blocks, "LEAST_BLOCK_ROWS", 3)
    monkeypatch.setattr(blocks, "QUANTISED_BLOCK_BYTES", 3 * DIM)
    monkeypatch.setattr(blocks, "BLOCKS_IN_SPAN", 2)


def writer(folder: Path, dtype: str = "float16", **meaning: Any) -> StoreWriter:
    made = StoreWriter(folder, {"dtype": dtype, "projection": {"dim": DIM}, **meaning}, KEYS, 10)
    made.open()
    values = torch.randn(len(KEYS), DIM, generator=torch.Generator().manual_seed(len(meaning)))
    for shard in range(made.num_shards):
        made.write(shard, values[list(made.rows(shard))])
    return made


def scored(folder: Path) -> torch.Tensor:
    """Scores of a store of these rows, as the score stage makes them."""
    side = TargetSide("t", ["t"], [torch.ones(1, DIM)], 0, "")
    return pool_influences([FeatureStore(folder, KEYS)], [1.0], [side])[0]


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 16
    path.write_bytes(content)


def place_of(path: Path, tensor: str) -> int:
    """Where a tensor starts in a shard's file."""
    length = int.from_bytes(path.read_bytes()[:8], "little")
    return 8 + length + int(json.loads(path.read_bytes()[8 : 8 + length])[tensor]["data_offsets"][0])


def swapped_rows(folder: Path) -> None:
    """Two rows' features change places; all else is as it was."""
    path = folder / SHARD
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in ("features", "scales", "norms")}
    tensors["features"][[0, 1]] = tensors["features"][[1, 0]]
    save_file(tensors, path, metadata)


def swapped_shards(folder: Path) -> None:
    first, second = folder / SHARD, folder / "shard-00002.safetensors"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def shard_of_another_checkpoint(folder: Path) -> None:
    other = folder.with_name("other")
    writer(other, checkpoint="another").finish()
    (folder / SHARD).write_bytes((other / SHARD).read_bytes())


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a feature": lambda folder: flip(folder / SHARD, place_of(folder / SHARD, "features") + 21),
    "the last feature": lambda folder: flip(folder / SHARD, -1),
    "a norm": lambda folder: flip(folder / SHARD, place_of(folder / SHARD, "norms") + 3),
    "a scale": lambda folder: flip(folder / SHARD, place_of(folder / SHARD, "scales") + 3),
    "an id": lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes().replace(b"row-15", b"row-95")),
    "two rows": swapped_rows,
    "two shards": swapped_shards,
    "a shard of another checkpoint": shard_of_another_checkpoint,
    "a lost shard": lambda folder: (folder / SHARD).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_scoring_names_the_shard(tmp_path: Path, damage: str) -> None:
    writer(tmp_path / "store").finish()
    DAMAGES[damage](tmp_path / "store")
    with pytest.raises(StoreDamaged, match=r"shard-0000[12]"):
        scored(tmp_path / "store")


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_names_the_shard(tmp_path: Path, damage: str) -> None:
    store = writer(tmp_path / "store").finish()
    DAMAGES[damage](tmp_path / "store")
    with pytest.raises(StoreDamaged, match=r"shard-0000[12]"):
        store.verify()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_damaged_before_the_store_is_finished_gets_no_good_checksum(tmp_path: Path, damage: str) -> None:
    unfinished = writer(tmp_path / "store")
    DAMAGES[damage](tmp_path / "store")
    with pytest.raises(StoreDamaged, match=r"shard-0000[12]"):
        unfinished.finish()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", *BITS])
def test_a_flipped_bit_is_found_in_every_dtype(tmp_path: Path, dtype: str) -> None:
    writer(tmp_path, dtype).finish()
    before = scored(tmp_path)
    flip(tmp_path / SHARD, place_of(tmp_path / SHARD, "features"))
    with pytest.raises(StoreDamaged, match="shard-00001"):
        scored(tmp_path)
    assert before.isfinite().all()


def changed_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A manifest that somebody wrote otherwise, with a good checksum of its own."""
    path = folder / "manifest.json"
    facts = read_record(path).facts
    change(facts)
    write_record(path, facts)


def test_a_manifest_that_lists_some_of_the_shards_is_refused(tmp_path: Path) -> None:
    writer(tmp_path).finish()
    changed_manifest(tmp_path, lambda facts: facts["shards"].pop())
    with pytest.raises(RunFolderError, match="30 rows, 20 in the shards"):
        scored(tmp_path)
    changed_manifest(tmp_path, lambda facts: facts.update(num_rows=20))
    with pytest.raises(StoreDamaged, match="holds 20 rows, not 30"):
        scored(tmp_path)


@pytest.mark.parametrize(("field", "value"), [("version", 2), ("format", "another store")])
def test_a_manifest_of_another_version_or_format_is_refused_by_name(tmp_path: Path, field: str, value: object) -> None:
    writer(tmp_path).finish()
    changed_manifest(tmp_path, lambda facts: facts.update({field: value}))
    with pytest.raises(StoreMismatch, match=f"{field}: {value!r} against"):
        FeatureStore(tmp_path)


def as_before_checks(folder: Path) -> None:
    """The store as it was written before shards had checksums of their own."""
    for path in folder.glob("shard-*"):
        without_checks(path)
    writer_of_old = StoreWriter(folder, read_record(folder / "manifest.json").facts["meaning"], KEYS, 10)
    writer_of_old.finish()


def test_shards_without_checksums_are_held_against_the_manifests(tmp_path: Path) -> None:
    writer(tmp_path).finish()
    before = scored(tmp_path)
    as_before_checks(tmp_path)
    assert torch.equal(scored(tmp_path), before)
    flip(tmp_path / SHARD, place_of(tmp_path / SHARD, "features"))
    with pytest.raises(StoreDamaged, match="shard-00001"):
        scored(tmp_path)


@pytest.mark.parametrize("num_bytes", [0, 1, 7, 8, 8 * LANES - 1, 8 * LANES, 50_003])
def test_checksum_is_the_naive_one(num_bytes: int) -> None:
    bytes_B = torch.randint(256, (num_bytes,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    content = bytes(bytes_B.tolist())
    whole = num_bytes // (8 * LANES) * LANES
    sums = [0] * LANES
    for index in range(whole):
        sums[index % LANES] += int.from_bytes(content[8 * index : 8 * index + 8], "little")
    lanes = b"".join(struct.pack("<Q", value % 2**64) for value in sums)
    assert checksum(bytes_B) == f"{zlib.crc32(content[8 * whole :], zlib.crc32(lanes)):08x}-{num_bytes}"


@pytest.mark.parametrize("bit", [0, 7, 8 * 8 * LANES - 1, 399_999])
def test_a_flipped_bit_changes_the_checksum(bit: int) -> None:
    bytes_B = torch.zeros(50_000, dtype=torch.uint8)
    before = checksum(bytes_B)
    bytes_B[bit // 8] = 1 << (bit % 8)
    assert checksum(bytes_B) != before
