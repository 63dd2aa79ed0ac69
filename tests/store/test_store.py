"""Feature stores: whole or absent, checksummed, and never joined with what means something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stores import KEYS, features, written

from gradsift.errors import StoreDamaged, StoreMismatch
from gradsift.store.store import FeatureStore, require_joinable


def test_keys_are_those_of_the_rows(tmp_path: Path) -> None:
    assert list(written(tmp_path, features()).keys()) == KEYS


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


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"checkpoint": "other"}, "checkpoint"),
        ({"base_model": "other"}, "base_model"),
        ({"tokenizer": "other"}, "tokenizer"),
        ({"template": "chatml"}, "template"),
        ({"max_length": 65}, "max_length"),
        ({"attention": "eager"}, "attention"),
        ({"positions": "of a row alone"}, "positions"),
        ({"supervise": "last"}, "supervise"),
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


def test_a_store_of_before_the_attention_was_recorded_is_one_of_sdpa(tmp_path: Path) -> None:
    old, sdpa, eager = (
        written(tmp_path / name, features(), gradient="sgd", attention=attention)
        for name, attention in (("old", None), ("sdpa", "sdpa"), ("eager", "eager"))
    )

    require_joinable(old, sdpa)
    with pytest.raises(StoreMismatch, match="attention"):
        require_joinable(old, eager)


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
    gone = dict.fromkeys(("checkpoint", "parameters", "gradient"))
    return {"representation": kind, "projection": {"kind": "none", "dim": 16}, **gone, **changes}


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
