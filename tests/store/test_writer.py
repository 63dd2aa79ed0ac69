"""Stores as they are written: shards that are missing, and meanings that differ."""

from __future__ import annotations

from pathlib import Path

import pytest
from stores import KEYS, features, meaning, written

from gradsift.errors import StoreDamaged, StoreMismatch
from gradsift.store.store import FeatureStore
from gradsift.store.writer import StoreWriter


@pytest.mark.parametrize(("wanted", "found"), [("float32", "int8"), ("int8", "int4"), ("int8", "float32")])
def test_shards_of_another_dtype_are_missing(tmp_path: Path, wanted: str, found: str) -> None:
    written(tmp_path, features(), dtype=found)
    assert StoreWriter(tmp_path, meaning(dtype=wanted), KEYS, 4).missing() == [0, 1, 2]


def test_lost_and_truncated_shards_are_missing(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, meaning(), KEYS, 4)
    written(tmp_path, features())
    (tmp_path / "shard-00000.safetensors").unlink()
    path = tmp_path / "shard-00002.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    assert writer.missing() == [0, 2]


def test_shard_of_other_rows_is_missing(tmp_path: Path) -> None:
    written(tmp_path, features())
    assert StoreWriter(tmp_path, meaning(), KEYS[::-1], 4).missing() == [0, 1, 2]


def test_unfinished_store_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(StoreDamaged, match=r"manifest\.json"):
        FeatureStore(tmp_path)


def test_going_on_with_another_meaning_is_refused_with_both_values(tmp_path: Path) -> None:
    StoreWriter(tmp_path, meaning(), KEYS, 4).open()
    with pytest.raises(StoreMismatch, match="max_length: 64 against 128"):
        StoreWriter(tmp_path, meaning(max_length=128), KEYS, 4).open()


def test_a_store_of_before_the_attention_was_recorded_is_gone_on_with_in_sdpa(tmp_path: Path) -> None:
    StoreWriter(tmp_path, meaning(), KEYS, 4).open()

    StoreWriter(tmp_path, meaning(attention="sdpa"), KEYS, 4).open()
    with pytest.raises(StoreMismatch, match="attention: 'sdpa' against 'eager'"):
        StoreWriter(tmp_path, meaning(attention="eager"), KEYS, 4).open()
