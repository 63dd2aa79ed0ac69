"""Rows as they are stored and read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stores import KEYS, features, written

from gradsift.store.quantization import BITS
from gradsift.store.shards import row_bytes, stacked, storage_scales


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


def test_ordinary_rows_are_stored_unscaled() -> None:
    assert torch.equal(storage_scales(features(), "float16"), torch.ones(10))


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_rows_that_no_scale_helps_are_stored_as_they_are(value: float) -> None:
    assert storage_scales(torch.full((1, 4), value), "float16").item() == 1
