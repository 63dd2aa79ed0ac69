"""A quantised store: whole, joinable, in the place of the one that it comes from; bad calls get one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from runs import gradsift, tiny_run

from gradsift.errors import StoreDamaged, StoreMismatch, UserError
from gradsift.store.conversion import quantize
from gradsift.store.quantization import BITS
from gradsift.store.shards import stacked, stored
from gradsift.store.store import FeatureStore
from gradsift.store.writer import StoreWriter

KEYS = [("pool", f"row-{index}") for index in range(10)]
MEANING = {"dtype": "float16", "projection": {"kind": "sketch", "dim": 24}, "checkpoint": "c", "parameters": {}}


@pytest.fixture
def original(tmp_path: Path) -> FeatureStore:
    writer = StoreWriter(tmp_path / "store", MEANING, KEYS, 4)
    writer.open()
    values = torch.randn(10, 24, generator=torch.Generator().manual_seed(0))
    for shard in writer.missing():
        writer.write(shard, values[list(writer.rows(shard))])
    return writer.finish()


@pytest.mark.parametrize("bits", BITS.values())
def test_only_the_dtype_of_the_meaning_changes(tmp_path: Path, original: FeatureStore, bits: int) -> None:
    found = quantize(original, bits, tmp_path / "small")
    found.verify()
    assert found.meaning == {**MEANING, "dtype": f"int{bits}"}
    assert [record["rows"] for record in found.manifest["shards"]] == [4, 4, 2]
    assert list(found.keys()) == KEYS


@pytest.mark.parametrize("bits", BITS.values())
def test_rows_are_those_of_the_source_quantised(tmp_path: Path, original: FeatureStore, bits: int) -> None:
    expected = stored(original.features(stacked(original.shards())), f"int{bits}")
    found = stacked(quantize(original, bits, tmp_path / "small").shards())
    assert torch.equal(found.features_RK, expected["features"])
    assert torch.equal(found.norms_R, expected["norms"])
    assert torch.equal(found.scales_R, expected["scales"])


def test_going_on_makes_the_missing_shards_alone(tmp_path: Path, original: FeatureStore) -> None:
    small = tmp_path / "small"
    before = stacked(quantize(original, 8, small).shards())
    writer = StoreWriter(tmp_path / "small", {**MEANING, "dtype": "int8"}, KEYS, 4)
    (small / "manifest.json").unlink()
    writer.open()
    (small / "shard-00001.safetensors").unlink()
    kept = (small / "shard-00000.safetensors").stat().st_mtime_ns
    again = stacked(quantize(original, 8, small).shards())  # the order in a header, and so its bytes, may differ
    assert (again.ids, again.features_RK.tolist()) == (before.ids, before.features_RK.tolist())
    assert (small / "shard-00000.safetensors").stat().st_mtime_ns == kept


def test_it_stands_for_the_store_that_it_comes_from(tmp_path: Path, original: FeatureStore) -> None:
    small = quantize(original, 4, tmp_path / "small")
    assert StoreWriter(small.folder, MEANING, KEYS, 4).is_finished()
    with pytest.raises(StoreMismatch, match="dtype"):
        StoreWriter(small.folder, {**MEANING, "dtype": "float32"}, KEYS, 4).is_finished()


def test_damage_is_not_passed_on(tmp_path: Path, original: FeatureStore) -> None:
    path = original.folder / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreDamaged, match="shard-00001"):
        quantize(original, 8, tmp_path / "small")


def test_another_width_in_the_same_folder_is_refused(tmp_path: Path, original: FeatureStore) -> None:
    quantize(original, 8, tmp_path / "small")
    with pytest.raises(StoreMismatch, match="dtype: 'int8' against 'int4'"):
        quantize(original, 4, tmp_path / "small")


def test_quantised_twice_is_refused(tmp_path: Path, original: FeatureStore) -> None:
    with pytest.raises(UserError, match="int8 already"):
        quantize(quantize(original, 8, tmp_path / "small"), 4, tmp_path / "smaller")


def test_folder_of_the_store_itself_is_refused(original: FeatureStore) -> None:
    with pytest.raises(UserError, match="--out"):
        quantize(original, 8, original.folder)


def test_command_writes_beside_the_store(original: FeatureStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert gradsift("store", "quantize", original.folder, "--bits", "1") == 0
    small = original.folder.with_name("store-int1")
    assert "10 rows at 1 bit" in capsys.readouterr().out
    assert gradsift("store", "verify", small) == 0
    assert gradsift("store", "info", small) == 0
    assert '"dtype": "int1"' in capsys.readouterr().out


def test_command_refuses_in_one_line(original: FeatureStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert gradsift("store", "quantize", original.folder.parent) == 2
    assert gradsift("store", "quantize", original.folder, "--out", original.folder) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_a_run_goes_on_with_a_quantised_store(tmp_path: Path, tiny_model_folder: Path) -> None:
    config, run = tiny_run(tmp_path, tiny_model_folder), tmp_path / "run"
    assert gradsift("run", config, "--until", "select") == 0
    before = json.loads((run / "scores" / "sums" / "less.json").read_text())
    for store in sorted((run / "features" / "pool").iterdir()):
        assert gradsift("store", "quantize", store) == 0
        store.rename(tmp_path / store.name)
        store.with_name(f"{store.name}-int8").rename(store)

    assert gradsift("run", config, "--until", "select") == 0

    after = json.loads((run / "scores" / "sums" / "less.json").read_text())
    assert after["inputs"] != before["inputs"]


def test_a_run_quantises_the_pool_alone(tmp_path: Path, tiny_model_folder: Path) -> None:
    features = {"projection": {"dim": 64}, "shard_rows": 8, "store_dtype": "int4"}
    config, run = tiny_run(tmp_path, tiny_model_folder, features=features), tmp_path / "run"
    assert gradsift("run", config, "--until", "select") == 0
    pools, targets = (
        sorted((run / "features" / "pool").iterdir()),
        sorted((run / "features" / "targets" / "sums").iterdir()),
    )
    assert {FeatureStore(store).dtype for store in pools} == {"int4"}
    assert {FeatureStore(store).dtype for store in targets} == {"float16"}
