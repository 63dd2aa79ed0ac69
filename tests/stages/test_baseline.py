"""Baselines through the command line: no model, the files of LESS."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import numpy as np
import pyarrow.parquet as pq
import pytest
from runs import gradsift, small_pool, tiny_run

from gradsift.baselines.methods import BASELINES
from gradsift.machine.artifact import read_json
from gradsift.selection.normalization import normalized


@pytest.mark.parametrize("method", BASELINES)
def test_a_baseline_selects_without_warmup_or_features(tmp_path: Path, tiny_model_folder: Path, method: str) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert gradsift("run", config, "--until", "select", f"select.method={method}") == 0
    selected = (tmp_path / "run" / "selection" / "sums" / f"{method}.jsonl").read_bytes().splitlines()
    pool = (tmp_path / "pool.jsonl").read_bytes().splitlines()
    assert len(selected) == (24 if method == "full" else 6)
    assert len(set(selected)) == len(selected)
    assert set(selected) <= set(pool)
    assert not (tmp_path / "run" / "features").exists()
    assert not (tmp_path / "run" / "warmup").exists()


def test_baselines_write_the_columns_of_less(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    for method in ("less", "bm25"):
        assert gradsift("run", config, "--until", "select", f"select.method={method}") == 0
    less, bm25 = (pq.read_table(tmp_path / "run" / "scores" / "sums" / f"{name}.parquet") for name in ("less", "bm25"))
    assert less.column_names == bm25.column_names
    assert less["id"].to_pylist() == bm25["id"].to_pylist()


@pytest.mark.parametrize("method", ["less", "rds+", "loss", "bm25", "full"])
def test_every_methods_scores_can_be_put_on_one_scale(tmp_path: Path, tiny_model_folder: Path, method: str) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    command = ("run", config, "--until", "select", f"select.method={method}")
    path = tmp_path / "run" / "scores" / "sums" / f"{method}.parquet"
    assert gradsift(*command) == 0
    before, before_NG = path.read_bytes(), np.array(_columns(path)).T
    assert gradsift(*command, "score.normalize=zscore") == 0
    table, found_NG = pq.read_table(path), np.array(_columns(path)).T
    assert np.allclose(found_NG, normalized(before_NG, "zscore"), atol=1e-4)
    assert table["score"].to_pylist() == found_NG.max(axis=1).tolist()
    assert table["best_subtask"].to_pylist() == [["even", "odd"][column] for column in found_NG.argmax(axis=1)]
    assert gradsift(*command, "score.normalize=none") == 0
    assert path.read_bytes() == before


def test_random_draws_follow_the_seed(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    drawn = []
    for seed in (0, 1, 0):
        run_dir = tmp_path / str(len(drawn))
        overrides = ["select.method=random", f"seed={seed}", f"run_dir={run_dir}"]
        assert gradsift("run", config, "--until", "select", *overrides) == 0
        drawn.append((run_dir / "selection" / "sums" / "random.jsonl").read_text())
    assert drawn[0] == drawn[2] != drawn[1]


def test_bm25_finds_the_words_of_the_target(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    (tmp_path / "target.jsonl").write_text(json.dumps({**small_pool()[5], "kind": "one"}) + "\n")
    overrides = ["select.method=bm25", "select.fraction=0.05", "select.overlap_ngrams=0"]
    assert gradsift("run", config, "--until", "select", *overrides) == 0
    (best,) = (tmp_path / "run" / "selection" / "sums" / "bm25.jsonl").read_text().splitlines()
    assert json.loads(best)["messages"] == small_pool()[5]["messages"]


def test_every_example_can_be_a_subtask_of_its_own(tmp_path: Path, tiny_model_folder: Path) -> None:
    """LESS's score of a subtask is the mean of its examples'."""
    config = tiny_run(tmp_path, tiny_model_folder)
    path = tmp_path / "run" / "scores" / "sums" / "less.parquet"
    assert gradsift("run", config, "--until", "score") == 0
    even, odd = _columns(path)
    assert gradsift("run", config, "--until", "select", "score.subtasks=examples", "select.strategy=round_robin") == 0
    of_examples = dict(zip(read_json(path.with_suffix(".json"))["subtasks"], _columns(path), strict=True))
    assert list(of_examples) == ["t0", "t1", "t2", "t3"]
    assert [fmean(pair) for pair in zip(of_examples["t0"], of_examples["t2"], strict=True)] == pytest.approx(
        even, abs=1e-6
    )
    assert [fmean(pair) for pair in zip(of_examples["t1"], of_examples["t3"], strict=True)] == pytest.approx(
        odd, abs=1e-6
    )
    assert gradsift("run", config, "--until", "select", "score.subtasks=examples", "select.method=bm25") == 0
    assert read_json(path.with_name("bm25.json"))["subtasks"] == ["t0", "t1", "t2", "t3"]


def _columns(path: Path) -> list[tuple[float, ...]]:
    return list(zip(*pq.read_table(path)["subtask_scores"].to_pylist(), strict=True))
