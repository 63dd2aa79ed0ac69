"""Rows that stream by are those of the shard, whatever the sizes of blocks and spans; damage is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gradsift.errors import StoreDamaged
from gradsift.store import blocks
from gradsift.store.blocks import SpanReader, block_rows, spans_of
from gradsift.store.headers import STORED_DTYPES, read_header

NUM_ROWS, DIM = 23, 6


def shard(folder: Path, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    features_RK = (100 * torch.randn(NUM_ROWS, DIM, generator=torch.Generator().manual_seed(0))).to(dtype)
    tensors = {"features": features_RK, "scales": torch.ones(NUM_ROWS), "norms": features_RK.float().norm(dim=1)}
    save_file(tensors, folder / "shard", {"ids": "[]"})
    return tensors


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of three rows, spans of two blocks."""
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 3 * DIM)
    monkeypatch.setattr(blocks, "LEAST_BLOCK_ROWS", 3)
    monkeypatch.setattr(blocks, "QUANTISED_BLOCK_BYTES", 3 * DIM)
    monkeypatch.setattr(blocks, "BLOCKS_IN_SPAN", 2)


@pytest.mark.parametrize("dtype", STORED_DTYPES.values())
def test_blocks_are_the_shards_rows(tmp_path: Path, small: None, dtype: torch.dtype) -> None:
    tensors, reader = shard(tmp_path, dtype), SpanReader()
    spans = list(spans_of(read_header(tmp_path / "shard")))
    found = [block.clone() for span in spans for block in reader.blocks(span)]
    assert [len(block) for block in found] == [3, 3, 3, 3, 3, 3, 3, 2]
    assert torch.equal(torch.cat(found), tensors["features"])


def test_numbers_are_those_of_the_spans_rows(tmp_path: Path, small: None) -> None:
    tensors = shard(tmp_path)
    found = [span.norms_R for span in spans_of(read_header(tmp_path / "shard"))]
    assert [len(norms_R) for norms_R in found] == [6, 6, 6, 5]
    assert torch.equal(torch.cat(found), tensors["norms"])


def test_a_block_has_one_row_at_least() -> None:
    assert block_rows(torch.float16, 10**9) == block_rows(torch.int8, 10**9) == 1


def test_a_block_of_long_rows_has_rows_enough_for_a_product_and_no_more_than_memory_for_them() -> None:
    widths = [8192, 32_768, 65_536, 131_072, 1 << 20, 1 << 21]
    assert [block_rows(torch.float16, width) for width in widths] == [128, 32, 32, 32, 4, 2]


def test_a_block_of_few_bits_has_rows_enough_for_a_product() -> None:
    assert block_rows(torch.int8, 131_072 // 8) == 384


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_truncated_shard_is_named(tmp_path: Path, left: int) -> None:
    shard(tmp_path)
    content = (tmp_path / "shard").read_bytes()
    (tmp_path / "shard").write_bytes(content[:left])
    with pytest.raises(StoreDamaged, match="shard"):
        list(spans_of(read_header(tmp_path / "shard")))


def test_shard_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    shard(tmp_path)
    [span] = spans_of(read_header(tmp_path / "shard"))
    content = (tmp_path / "shard").read_bytes()
    (tmp_path / "shard").write_bytes(content[:-1])
    with pytest.raises(StoreDamaged, match="ends too early"):
        list(SpanReader().blocks(span))


def test_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreDamaged, match="shard"):
        list(spans_of(read_header(tmp_path / "shard")))
