"""Scores of whole stores: the naive sum over checkpoints, the same bits on any number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from runs import gradsift, tiny_run
from torch import Tensor

from gradsift.errors import StoreDamaged
from gradsift.selection import Influence, build_products, products
from gradsift.stages.score import StoredDirections, TargetSide, pool_influences
from gradsift.store import blocks
from gradsift.store.quantization import BITS
from gradsift.store.shards import stored
from gradsift.store.store import FeatureStore
from gradsift.store.writer import StoreWriter

NUM_ROWS, DIM, WEIGHTS = 70, 27, [0.25, 0.75]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_VALUES", 5 * DIM)
    monkeypatch.setattr(blocks, "LEAST_BLOCK_ROWS", 5)
    monkeypatch.setattr(blocks, "QUANTISED_BLOCK_BYTES", 5 * DIM)
    monkeypatch.setattr(blocks, "BLOCKS_IN_SPAN", 2)


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


KEYS = [("pool", str(row)) for row in range(NUM_ROWS)]


def store(folder: Path, seed: int, dtype: str, wanted: list[int] | None = None) -> FeatureStore:
    """A store of all rows, or of those that are wanted, written one after the other in the order given."""
    writer = StoreWriter(folder, {"dtype": dtype, "projection": {"dim": DIM}}, KEYS, 32)
    values = draw(NUM_ROWS, DIM, seed=seed)
    for row in [None] if wanted is None else wanted:
        writer.open(None if row is None else [row])
        for shard in writer.missing():
            writer.write(shard, values[list(writer.rows(shard))])
    writer.finish()
    return FeatureStore(folder, KEYS)


def side(name: str, num_subtasks: int, seed: int, checkpoints: int = len(WEIGHTS)) -> TargetSide:
    directions = [draw(num_subtasks, DIM, seed=seed + index) / DIM**0.5 for index in range(checkpoints)]
    return TargetSide(name, [f"{name}-{index}" for index in range(num_subtasks)], directions, 0, "")


def naive(stores: list[FeatureStore], target: TargetSide) -> Tensor:
    total = torch.zeros(NUM_ROWS, len(target.subtasks), dtype=torch.float64)
    for store_, weight, directions in zip(stores, WEIGHTS, target.directions, strict=True):
        row = 0
        for shard in store_.shards():
            for feature, norm in zip(store_.features(shard).double(), shard.norms_R.double(), strict=True):
                for column, direction in enumerate(directions.double()):
                    total[row, column] += weight * (feature @ direction) / norm
                row += 1
    return total


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_scores_are_the_naive_sum_over_checkpoints(tmp_path: Path, threads: int, dtype: str) -> None:
    stores = [store(tmp_path / str(index), index, dtype) for index in range(2)]
    sides = [side("a", 3, seed=5), side("b", 1, seed=9)]
    for found, target in zip(pool_influences(stores, WEIGHTS, sides), sides, strict=True):
        assert torch.allclose(found.double(), naive(stores, target), atol=1e-6)


def test_directions_from_stores_are_the_means_of_unit_rows_at_every_checkpoint(tmp_path: Path) -> None:
    stores = [store(tmp_path / str(index), index, "float32") for index in range(2)]
    members = ["odd" if row % 2 else "even" for row in range(NUM_ROWS)]
    found = list(StoredDirections(stores, members, ["odd", "even"], "mean_of_cosines"))
    for index, directions_GK in enumerate(found):
        values = draw(NUM_ROWS, DIM, seed=index)
        units = [value / value.norm() for value in values]
        expected = torch.stack([sum(units[1::2], torch.zeros(DIM)), sum(units[::2], torch.zeros(DIM))]) / 35
        torch.testing.assert_close(directions_GK, expected)
    assert len(found) == 2


def test_a_targets_features_are_read_at_one_checkpoint_at_a_time_and_only_where_it_has_no_scores(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, steps = tiny_run(tmp_path, tiny_model_folder), []
    features, spans = FeatureStore.features, FeatureStore.spans
    monkeypatch.setattr(FeatureStore, "features", lambda self, rows: steps.append(self.folder) or features(self, rows))
    monkeypatch.setattr(FeatureStore, "spans", lambda self: steps.append(self.folder) or spans(self))

    assert gradsift("run", config, "--until", "score") == 0
    targets, pool = (tmp_path / "run" / "features" / name for name in ("targets/sums", "pool"))
    one, two = (path.name for path in sorted(pool.iterdir()))
    assert steps == [targets / one, targets / two, targets / one, pool / one, targets / two, pool / two]
    steps.clear()
    assert gradsift("run", config, "--until", "score") == 0
    assert steps == [targets / one, targets / two]  # for the norms alone


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("dtype", BITS)
def test_scores_of_a_quantised_store_are_the_naive_sum_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, fast: bool
) -> None:
    if fast and not products.integers_are_fast():
        pytest.skip("int8 products aren't exact here")
    monkeypatch.setattr(products, "integers_are_fast", lambda: fast)
    stores, target = [store(tmp_path / str(index), index, dtype) for index in range(2)], side("a", 3, seed=5)
    [found] = pool_influences(stores, WEIGHTS, [target])
    # Directions have 16 bits, of signs 8: an entry is off by a part of the largest, a product by that times √K at most.
    part = 1 / 254 if dtype == "int1" else 4 / 65_278 if fast else 1e-7
    bound = part * max(float(direction.abs().max()) for direction in target.directions) * DIM**0.5
    assert torch.allclose(found.double(), naive(stores, target), atol=bound)


def test_a_store_of_blocks_as_they_were_before_has_the_same_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, stores = side("a", 3, seed=5, checkpoints=1), [store(tmp_path / "now", 0, "int1")]
    with monkeypatch.context() as before:
        before.setattr(blocks, "QUANTISED_BLOCK_BYTES", 1)
        stores.append(store(tmp_path / "before", 0, "int1"))
    assert [next(each.spans()).block_rows for each in stores] == [33, 1]
    [[now], [before]] = (pool_influences([each], [1.0], [target]) for each in stores)
    assert torch.equal(now, before)


@pytest.mark.parametrize("dtype", ["float32", *BITS])
def test_rows_of_a_store_that_holds_some_score_as_in_one_of_all_rows(tmp_path: Path, dtype: str) -> None:
    """The two checkpoints' stores have other rows, in another order: what one lacks has no score."""
    wanted, target = [[5, 60, 3, 44], [44, 7, 5, 60, 8]], side("a", 3, seed=5)
    whole = [store(tmp_path / str(index), index, dtype) for index in range(2)]
    some = [store(tmp_path / f"some-{index}", index, dtype, wanted[index]) for index in range(2)]
    [found], [expected] = (pool_influences(stores, WEIGHTS, [target]) for stores in (some, whole))
    both = [5, 44, 60]
    assert found.shape == (NUM_ROWS, 3)
    assert (~found.isnan()).all(dim=1).nonzero()[:, 0].tolist() == both
    if dtype != "float32" and products.integers_are_fast():
        assert torch.equal(found[both], expected[both])
    assert torch.allclose(found[both], expected[both], atol=1e-6)


@pytest.mark.parametrize(("dtype", "least"), [("int8", 0.98), ("int4", 0.85), ("int1", 0.6)])
def test_a_quantised_store_keeps_the_best_rows(tmp_path: Path, dtype: str, least: float) -> None:
    """2,000 rows of 512 values, in each a share of a direction that differs from row to row as cosines do in a pool."""
    directions_GK = draw(3, 512, seed=1)
    values_NK = draw(2000, 512, seed=2) + 0.1 * draw(2000, 3, seed=3) @ directions_GK
    best = []
    for name in ("float32", dtype):
        tensors = stored(values_NK, name)
        influence = Influence(build_products(directions_GK, name))
        scores_NG = influence.scores([tensors["features"]], tensors["norms"] / tensors["scales"])
        best.append(set(scores_NG.amax(dim=1).topk(100).indices.tolist()))
    assert len(best[0] & best[1]) / 100 >= least


def test_quantised_scores_come_close_to_the_others_as_the_bits_grow(tmp_path: Path) -> None:
    target = side("a", 3, seed=5, checkpoints=1)
    [whole], *rest = (
        pool_influences([store(tmp_path / dtype, 0, dtype)], [1.0], [target]) for dtype in ("float32", *BITS)
    )
    errors = [float((found - whole).square().mean().sqrt()) for [found] in rest]
    assert [error / float(whole.std()) < most for error, most in zip(errors, (0.01, 0.15, 0.8), strict=True)] == [
        True
    ] * 3
    assert errors == sorted(errors)


@pytest.mark.parametrize("dtype", ["float16", *BITS])
def test_the_number_of_threads_changes_no_bit(tmp_path: Path, threads: int, dtype: str) -> None:
    stores, target = [store(tmp_path / str(index), index, dtype) for index in range(2)], side("a", 3, seed=5)
    [found] = pool_influences(stores, WEIGHTS, [target])
    assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    assert torch.equal(found, pool_influences(stores, WEIGHTS, [target])[0])


def test_damage_found_by_a_thread_is_named(tmp_path: Path) -> None:
    stores = [store(tmp_path, 0, "float16")]
    path = tmp_path / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreDamaged, match="shard-00001"):
        pool_influences(stores, [1.0], [side("a", 3, seed=5, checkpoints=1)])
