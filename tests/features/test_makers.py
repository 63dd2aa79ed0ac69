"""Methods that need the base model alone, through the command line: their stores, scores and selections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from runs import gradsift, largest_relative_error, stored_features, tiny_run
from stores import stopped_after_a_shard

from gradsift.baselines.methods import own_strategy
from gradsift.baselines.representations import REPRESENTATIONS
from gradsift.machine.artifact import read_json
from gradsift.machine.records import read_record, write_record

MATCHED = [name for name, kind in REPRESENTATIONS.items() if not kind.is_score]


def select(config: Path, method: str, *overrides: str) -> int:
    return gradsift("run", config, "--until", "select", f"select.method={method}", *overrides)


def scores(folder: Path, method: str) -> Any:
    return pq.read_table(folder / "run" / "scores" / "sums" / f"{method}.parquet")


def store_at(folder: Path, kind: str) -> Path:
    return folder / "run" / "features" / "pool" / kind


def shard_times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*")}


@pytest.mark.parametrize("method", REPRESENTATIONS)
def test_a_representation_selects_without_a_warmup(tmp_path: Path, tiny_model_folder: Path, method: str) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert select(config, method) == 0
    selected = (tmp_path / "run" / "selection" / "sums" / f"{method}.jsonl").read_bytes().splitlines()
    assert len(set(selected)) == 6
    assert set(selected) <= set((tmp_path / "pool.jsonl").read_bytes().splitlines())
    assert not (tmp_path / "run" / "warmup").exists()
    assert sorted(path.name for path in (tmp_path / "run" / "features" / "pool").iterdir()) == [method]


@pytest.mark.parametrize("method", MATCHED)
def test_scores_are_the_mean_cosines_with_a_subtasks_examples(
    tmp_path: Path, tiny_model_folder: Path, method: str
) -> None:
    assert select(tiny_run(tmp_path, tiny_model_folder), method) == 0
    pool = stored_features(store_at(tmp_path, method))
    target = stored_features(tmp_path / "run" / "features" / "targets" / "sums" / method)
    unit = {name: row / row.norm() for name, row in target.items()}
    table = scores(tmp_path, method)
    for row_id, found in zip(table["id"].to_pylist(), table["subtask_scores"].to_pylist(), strict=True):
        row_K = pool[row_id] / pool[row_id].norm()
        even, odd = (float(np.mean([float(row_K @ unit[f"t{i}"]) for i in pair])) for pair in ((0, 2), (1, 3)))
        assert found == pytest.approx([even, odd], abs=1e-5)


def test_the_highest_loss_comes_first(tmp_path: Path, tiny_model_folder: Path) -> None:
    assert select(tiny_run(tmp_path, tiny_model_folder), "loss") == 0
    losses = {row_id: float(row_K[0]) for row_id, row_K in stored_features(store_at(tmp_path, "loss")).items()}
    table = scores(tmp_path, "loss")
    assert dict(zip(table["id"].to_pylist(), table["score"].to_pylist(), strict=True)) == pytest.approx(losses)
    facts = read_json(tmp_path / "run" / "selection" / "sums" / "loss.json")
    chosen = [table["id"].to_pylist()[table["row"].to_pylist().index(row)] for row in facts["rows"]]
    assert chosen == sorted(losses, key=lambda row_id: -losses[row_id])[:6]


def test_losses_are_stored_in_float32_whatever_the_features_are(tmp_path: Path, tiny_model_folder: Path) -> None:
    assert select(tiny_run(tmp_path, tiny_model_folder), "loss", "features.store_dtype=float16") == 0
    assert read_json(store_at(tmp_path, "loss") / "manifest.json")["meaning"]["dtype"] == "float32"


def test_rds_plus_selects_in_turns_unless_told_otherwise(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    path = tmp_path / "run" / "selection" / "sums" / "rds+.jsonl"
    chosen = []
    for overrides in ([], ["select.strategy=round_robin"], ["select.strategy=top"]):
        assert select(config, "rds+", *overrides) == 0
        chosen.append(path.read_bytes())
    assert own_strategy("rds+") == "round_robin"
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize("method", MATCHED)
def test_a_run_that_is_stopped_between_shards_goes_on(tmp_path: Path, tiny_model_folder: Path, method: str) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    with stopped_after_a_shard():
        assert select(config, method) == 130
    before = shard_times(store_at(tmp_path, method))
    assert list(before) == ["shard-00000.safetensors"]

    assert select(config, method) == 0

    after = shard_times(store_at(tmp_path, method))
    assert len(after) == 3
    assert after.items() >= before.items()


@pytest.mark.parametrize(
    "overrides",
    [
        ["features.tokens_per_batch=1"],
        ["features.tokens_per_batch=100000"],
        ["features.shard_rows=5"],
        pytest.param(["executor.workers=2"], marks=pytest.mark.slow),
    ],
    ids=lambda overrides: overrides[0],
)
@pytest.mark.parametrize("method", REPRESENTATIONS)
def test_representations_do_not_depend_on(
    overrides: list[str], method: str, tmp_path: Path, tiny_model_folder: Path
) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    found = []
    for name, more in (("one", []), ("other", overrides)):
        arguments = [f"run_dir={tmp_path / name / 'run'}", f"select.method={method}", *more]
        assert gradsift("run", config, "--until", "features", *arguments) == 0
        found.append(stored_features(store_at(tmp_path / name, method)))
    for row_id, row in found[0].items():
        assert largest_relative_error(found[1][row_id], row) < 1e-5


def test_a_target_of_another_base_is_refused_in_a_line(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert select(config, "rds") == 0
    manifest = tmp_path / "run" / "features" / "targets" / "sums" / "rds" / "manifest.json"
    facts = read_record(manifest).facts
    write_record(manifest, {**facts, "meaning": {**facts["meaning"], "base_model": "another"}})
    capsys.readouterr()
    assert gradsift("score", config, "select.method=rds") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "base_model" in line


def test_the_warmup_may_still_change_where_there_are_representations_alone(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert select(config, "rds") == 0
    assert gradsift("run", config, "--until", "encode", "warmup.epochs=3", "features.projection.dim=32") == 0


def test_scoring_before_the_features_is_refused_in_a_line(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradsift("score", tiny_run(tmp_path, tiny_model_folder), "select.method=loss") == 2
    assert "unfinished" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_stores_facts_are_shown(tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert gradsift("run", config, "--until", "features", "select.method=rds") == 0
    capsys.readouterr()
    assert gradsift("store", "info", store_at(tmp_path, "rds")) == 0
    assert '"representation": "rds"' in capsys.readouterr().out
