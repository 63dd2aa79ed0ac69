"""A shard that is filled batch by batch, in any order, is the one that is made of all its rows at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from stores import meaning

from gradsift.store.builder import ShardBuilder
from gradsift.store.quantization import BITS
from gradsift.store.shards import DTYPES, row_bytes, stored


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def described(dtype: str, dim: int) -> dict[str, object]:
    return meaning(dtype=dtype, projection={"kind": "sketch", "dim": dim})


@pytest.mark.parametrize("batch", [1, 3, 20])
@pytest.mark.parametrize("dim", [21, 1 << 17])
@pytest.mark.parametrize("dtype", [*DTYPES, *BITS])
def test_rows_are_stored_as_all_at_once(dtype: str, dim: int, batch: int, threads: None) -> None:
    features_RK = torch.randn(20, dim, generator=torch.Generator().manual_seed(0))
    features_RK[3], features_RK[4, 0], features_RK[5] = 0, float("nan"), features_RK[5] * 1e-4
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    builder = ShardBuilder(described(dtype, dim), 20)

    for positions in order.split(batch):
        builder.put(positions.tolist(), features_RK[positions])

    for name, expected in stored(features_RK, dtype).items():
        assert torch.equal(builder.tensors[name].nan_to_num(7.0), expected.nan_to_num(7.0))
        assert builder.tensors[name].dtype == expected.dtype


@pytest.mark.parametrize("dtype", [*DTYPES, *BITS])
def test_memory_is_that_of_the_shard_as_stored(dtype: str) -> None:
    builder = ShardBuilder(described(dtype, 21), 4)
    builder.put(range(4), torch.ones(4, 21))
    assert sum(tensor.nbytes for tensor in builder.tensors.values()) == 4 * row_bytes(21, dtype)


def test_a_shard_with_a_row_missing_is_not_written() -> None:
    builder = ShardBuilder(described("float16", 21), 4)
    builder.put([0, 1, 3], torch.ones(3, 21))
    with pytest.raises(AssertionError, match="row missing"):
        _ = builder.tensors
