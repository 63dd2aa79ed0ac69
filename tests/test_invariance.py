"""What must not change a feature: padding, batch budget, shard size, row order, number of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import gradsift, largest_relative_error, small_pool, stored_features, tiny_run, write_jsonl

Overrides = list[str]


@pytest.fixture(scope="module")
def reference_run(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    assert gradsift("run", tiny_run(folder, tiny_model_folder)) == 0
    return folder


def pool_features(run: Path) -> dict[str, torch.Tensor]:
    last = max((run / "features" / "pool").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    return stored_features(last)


def rerun(reference: Path, folder: Path, model: Path, overrides: Overrides, **sections: Any) -> dict[str, torch.Tensor]:
    """Features of the same checkpoints under other settings."""
    checkpoints = sorted((reference / "run" / "warmup").glob("checkpoint-*"))
    config = tiny_run(folder, model, warmup={"checkpoints": [str(path) for path in checkpoints]}, **sections)
    assert gradsift("run", config, "--until", "features", *overrides) == 0
    return pool_features(folder / "run")


@pytest.mark.parametrize(
    "overrides",
    [
        ["features.tokens_per_batch=1"],
        ["features.tokens_per_batch=100000"],
        ["features.shard_rows=5"],
        ["features.shard_rows=1000"],
        pytest.param(["executor.workers=2"], marks=pytest.mark.slow),
    ],
    ids=lambda overrides: overrides[0],
)
def test_features_do_not_depend_on(
    overrides: Overrides, reference_run: Path, tmp_path: Path, tiny_model_folder: Path
) -> None:
    expected = pool_features(reference_run / "run")
    found = rerun(reference_run, tmp_path, tiny_model_folder, overrides)
    assert found.keys() == expected.keys()
    for row_id, row in expected.items():
        assert largest_relative_error(found[row_id], row) < 1e-5


def test_features_do_not_depend_on_the_order_of_rows(
    reference_run: Path, tmp_path: Path, tiny_model_folder: Path
) -> None:
    expected = pool_features(reference_run / "run")
    backwards = write_jsonl(tmp_path / "backwards.jsonl", small_pool()[::-1])
    sections = {"pool": [{"name": "pool", "path": str(backwards)}]}
    found = rerun(reference_run, tmp_path, tiny_model_folder, [], **sections)
    for row_id, row in expected.items():
        assert largest_relative_error(found[row_id], row) < 1e-5


def test_the_selection_does_not_depend_on_shards(reference_run: Path, tmp_path: Path, tiny_model_folder: Path) -> None:
    checkpoints = sorted((reference_run / "run" / "warmup").glob("checkpoint-*"))
    config = tiny_run(tmp_path, tiny_model_folder, warmup={"checkpoints": [str(path) for path in checkpoints]})
    assert gradsift("run", config, "features.shard_rows=3") == 0
    selection = Path("selection", "sums", "less.jsonl")
    assert (tmp_path / "run" / selection).read_bytes() == (reference_run / "run" / selection).read_bytes()


def test_another_seed_gives_another_projection(reference_run: Path, tmp_path: Path, tiny_model_folder: Path) -> None:
    expected = pool_features(reference_run / "run")
    found = rerun(reference_run, tmp_path, tiny_model_folder, ["features.projection.seed=1"])
    assert all(not torch.allclose(found[row_id], row) for row_id, row in expected.items())
