"""Feature stores: whole or absent, checksummed, and never joined with what means something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gradsift.errors import StoreDamaged, StoreMismatch
from gradsift.quantization import BITS
from gradsift.store import FeatureStore, StoreWriter, require_joinable, row_bytes, stacked, storage_scales

KEYS = [("pool", f"row-{index}") for index in range(10)]


def meaning(**changes: Any) -> dict[str, Any]:
    return {
        "checkpoint": "c",
        "base_model": "b",
        "tokenizer": "t",
        "template": "tulu",
        "max_length": 64,
        "parameters": {"layer.0.lora_A.default.weight": [4, 8]},
        "projection": {"kind": "sketch", "dim": 16, "seed": 0, "version": 1},
        "gradient": "reference",
        "dtype": "float32",
        "data": "d",
        **changes,
    }


def features(scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(10, 16, generator=torch.Generator().manual_seed(0))


def written(folder: Path, values: torch.Tensor, **changes: Any) -> FeatureStore:
    described = {key: value for key, value in meaning(**changes).items() if value is not None}
    writer = StoreWriter(folder, described, KEYS, 4)
    writer.open()
    for shard in writer.missing():
        writer.write(shard, values[slice(*writer.bounds(shard))])
    return writer.finish()


@pytest.mark.parametrize(("dtype", "precision"), [("float32", 0.0), ("float16", 1e-3), ("bfloat16", 8e-3)])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_features_come_back_within_the_precision_of_their_dtype(
    tmp_path: Path, dtype: str, precision: float, scale: float
) -> None:
    rows = stacked(written(tmp_path, features(scale), dtype=dtype).shards())
    found = rows.features_RK.float() * rows.scales_R[:, None]
    assert [*zip(rows.sources, rows.ids, strict=True)] == KEYS
    assert torch.all((found - features(scale)).norm(dim=1) <= precision * features(scale).norm(dim=1))


def test_norms_are_of_the_float32_features(tmp_path: Path) -> None:
    rows = stacked(written(tmp_path, features(), dtype="float16").shards())
    assert torch.equal(rows.norms_R, torch.linalg.vector_norm(features(), dim=1))


@pytest.mark.parametrize("dtype", BITS)
def test_norms_of_quantised_rows_are_of_what_comes_back(tmp_path: Path, dtype: str) -> None:
    store = written(tmp_path, features(), dtype=dtype)
    rows = stacked(store.shards())
    assert torch.allclose(rows.norms_R, store.features(rows).norm(dim=1), rtol=1e-6)


@pytest.mark.parametrize(("dtype", "most"), [("int8", 0.01), ("int4", 0.2), ("int1", 0.75)])
def test_quantised_features_come_back_near_what_they_were(tmp_path: Path, dtype: str, most: float) -> None:
    store = written(tmp_path, features(), dtype=dtype)
    found = store.features(stacked(store.shards()))
    assert torch.all((found - features()).norm(dim=1) <= most * features().norm(dim=1))


@pytest.mark.parametrize("dtype", BITS)
def test_a_quantised_row_takes_its_bits(tmp_path: Path, dtype: str) -> None:
    rows = stacked(written(tmp_path, features(), dtype=dtype).shards())
    assert rows.features_RK.nbytes == 10 * 16 * BITS[dtype] // 8
    assert row_bytes(16, dtype) == 16 * BITS[dtype] // 8 + 8


@pytest.mark.parametrize(("wanted", "found"), [("float32", "int8"), ("int8", "int4"), ("int8", "float32")])
def test_shards_of_another_dtype_are_missing(tmp_path: Path, wanted: str, found: str) -> None:
    written(tmp_path, features(), dtype=found)
    assert StoreWriter(tmp_path, meaning(dtype=wanted), KEYS, 4).missing() == [0, 1, 2]


def test_keys_are_those_of_the_rows(tmp_path: Path) -> None:
    assert list(written(tmp_path, features()).keys()) == KEYS


def test_ordinary_rows_are_stored_unscaled() -> None:
    assert torch.equal(storage_scales(features(), "float16"), torch.ones(10))


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_rows_that_no_scale_helps_are_stored_as_they_are(value: float) -> None:
    assert storage_scales(torch.full((1, 4), value), "float16").item() == 1


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


def test_finished_store_verifies(tmp_path: Path) -> None:
    written(tmp_path, features()).verify()


def test_flipped_byte_is_found(tmp_path: Path) -> None:
    store = written(tmp_path, features())
    path = tmp_path / "shard-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreDamaged, match="shard-00001"):
        store.verify()


def test_unfinished_store_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(StoreDamaged, match=r"manifest\.json"):
        FeatureStore(tmp_path)


def test_going_on_with_another_meaning_is_refused_with_both_values(tmp_path: Path) -> None:
    StoreWriter(tmp_path, meaning(), KEYS, 4).open()
    with pytest.raises(StoreMismatch, match="max_length: 64 against 128"):
        StoreWriter(tmp_path, meaning(max_length=128), KEYS, 4).open()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"checkpoint": "other"}, "checkpoint"),
        ({"base_model": "other"}, "base_model"),
        ({"tokenizer": "other"}, "tokenizer"),
        ({"template": "chatml"}, "template"),
        ({"max_length": 65}, "max_length"),
        ({"parameters": {"layer.0.lora_A.default.weight": [4, 9]}}, "parameters"),
        ({"projection": {"kind": "sketch", "dim": 16, "seed": 1, "version": 1}}, "projection.seed"),
        ({"projection": {"kind": "sketch", "dim": 16, "seed": 0, "version": 2}}, "projection.version"),
    ],
)
def test_stores_that_differ_are_not_joined(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    pool = written(tmp_path / "pool", features())
    target = written(tmp_path / "target", features(), gradient="sgd", **change)
    with pytest.raises(StoreMismatch) as refusal:
        require_joinable(pool, target)
    assert refusal.value.field.startswith(field)


def test_stores_may_differ_in_data_and_dtype(tmp_path: Path) -> None:
    pool = written(tmp_path / "pool", features())
    require_joinable(pool, written(tmp_path / "target", features(), gradient="sgd", data="other", dtype="float16"))
    pool = written(tmp_path / "small", features(), dtype="int1")
    require_joinable(pool, FeatureStore(tmp_path / "target"))


def test_target_side_must_be_plain_gradients(tmp_path: Path) -> None:
    pool = written(tmp_path / "pool", features())
    with pytest.raises(StoreMismatch, match="gradient"):
        require_joinable(pool, written(tmp_path / "target", features()))


def representation(kind: str = "rds", **changes: Any) -> dict[str, Any]:
    """What the meaning of a representation's store is, beside that of gradients."""
    gone = dict.fromkeys(("checkpoint", "parameters", "projection", "gradient"))
    return {"representation": kind, **gone, **changes}


def test_representations_of_a_kind_are_joined(tmp_path: Path) -> None:
    pool = written(tmp_path / "pool", features(), **representation())
    require_joinable(pool, written(tmp_path / "target", features(), **representation(data="other")))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"representation": "rds+"}, "representation"),
        ({"base_model": "x"}, "base_model"),
        ({"max_length": 9}, "max_length"),
        ({"embedder": "x"}, "embedder"),
    ],
)
def test_representations_that_differ_are_not_joined(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    pool = written(tmp_path / "pool", features(), **representation())
    with pytest.raises(StoreMismatch) as refusal:
        require_joinable(pool, written(tmp_path / "target", features(), **{**representation(), **change}))
    assert refusal.value.field.startswith(field)


@pytest.mark.parametrize(("pool", "target"), [(representation(), {"gradient": "sgd"}), ({}, representation())])
def test_gradients_and_representations_are_not_joined(
    tmp_path: Path, pool: dict[str, Any], target: dict[str, Any]
) -> None:
    left, right = (written(tmp_path / name, features(), **kind) for name, kind in (("p", pool), ("t", target)))
    with pytest.raises(StoreMismatch, match=r"representation: .*gradients"):
        require_joinable(left, right)
