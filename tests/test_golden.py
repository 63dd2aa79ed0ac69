"""The authors' own numbers, reached through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from runs import SHARED, gradsift, largest_relative_error, stored_features, write_config, write_jsonl
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent: no golden numbers")

GOLDEN = SHARED / "golden"
CHECKPOINTS = ("checkpoint-8", "checkpoint-16")


def pool_rows(ids: list[str]) -> list[dict[str, Any]]:
    wanted = set(ids)
    with (SHARED / "data" / "pool.jsonl").open(encoding="utf-8") as file:
        rows = {row["id"]: row for row in map(json.loads, file) if row["id"] in wanted}
    return [rows[row_id] for row_id in ids]


def golden_config(folder: Path, adam: str) -> Path:
    facts = json.loads((GOLDEN / "ids.json").read_text())
    subtasks = json.loads((GOLDEN / "expected-scores.json").read_text())["subtasks"]
    target = [{**row, "part": part} for row, part in zip(pool_rows(facts["target"]), subtasks, strict=True)]
    pool = write_jsonl(folder / "pool.jsonl", pool_rows(facts["train"]))
    return write_config(
        folder,
        model={"name_or_path": str(SHARED / "models" / "stories-260k"), "dtype": "float32"},
        pool=[{"name": "pool", "path": str(pool)}],
        targets=[
            {"name": "golden", "path": str(write_jsonl(folder / "target.jsonl", target)), "subtask_column": "part"}
        ],
        encoding={"template": "tulu", "max_length": facts["max_length"]},
        preset="paper",
        warmup={"checkpoints": [str(GOLDEN / name) for name in CHECKPOINTS]},
        features={"projection": {"kind": "identity"}, "adam": adam, "store_dtype": "float32", "shard_rows": 10},
    )


@pytest.fixture(scope="module", params=["reference", "sgd"])
def golden_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    assert gradsift("run", golden_config(folder, request.param)) == 0
    return request.param, folder / "run"


def in_golden_order(features: dict[str, torch.Tensor], side: str) -> torch.Tensor:
    ids = json.loads((GOLDEN / "ids.json").read_text())[side]
    return torch.stack([features[row_id] for row_id in ids])


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_pool_features_equal_the_authors(golden_run: tuple[str, Path], checkpoint: str) -> None:
    form, run = golden_run
    expected = load_file(GOLDEN / f"expected-{checkpoint}.safetensors")
    name = {"reference": "train_adam_features", "sgd": "train_gradients"}[form]
    found = in_golden_order(stored_features(run / "features" / "pool" / checkpoint), "train")
    assert largest_relative_error(found, expected[name]) < 1e-5


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_target_gradients_equal_the_authors(golden_run: tuple[str, Path], checkpoint: str) -> None:
    _, run = golden_run
    expected = load_file(GOLDEN / f"expected-{checkpoint}.safetensors")["target_gradients"]
    found = in_golden_order(stored_features(run / "features" / "targets" / "golden" / checkpoint), "target")
    assert largest_relative_error(found, expected) < 1e-5


def test_scores_equal_the_authors(golden_run: tuple[str, Path]) -> None:
    form, run = golden_run
    if form != "reference":
        pytest.skip("the expected scores are of the reference form")
    expected = json.loads((GOLDEN / "expected-scores.json").read_text())["scores"]
    table = pq.read_table(run / "scores" / "golden" / "less.parquet")
    assert table["score"].to_pylist() == pytest.approx(expected, rel=1e-5)


def test_the_best_row_is_selected_as_it_was_written(golden_run: tuple[str, Path]) -> None:
    _, run = golden_run
    table = pq.read_table(run / "scores" / "golden" / "less.parquet").sort_by([("score", "descending")])
    selected = (run / "selection" / "golden" / "less.jsonl").read_bytes().splitlines()
    pool = (run.parent / "pool.jsonl").read_bytes().splitlines()
    by_id = {json.loads(line)["id"]: line for line in pool}
    assert selected == [by_id[row_id] for row_id in table["id"].to_pylist()[: len(selected)]]


@pytest.mark.parametrize("max_length", [256, 4096])
def test_encodings_equal_the_authors(tmp_path: Path, max_length: int) -> None:
    lines = map(json.loads, (GOLDEN / "encodings.jsonl").read_text().splitlines())
    expected = {line["id"]: line for line in lines if line["max_length"] == max_length}
    pool = write_jsonl(tmp_path / "pool.jsonl", pool_rows(list(expected)))
    config = write_config(
        tmp_path,
        model={"name_or_path": str(SHARED / "models" / "stories-260k")},
        pool=[{"name": "pool", "path": str(pool)}],
        targets=[{"name": "self", "path": str(pool)}],
        encoding={"template": "tulu", "max_length": max_length},
    )
    assert gradsift("encode", config) == 0
    rows = pq.read_table(tmp_path / "run" / "pool" / "rows.parquet").to_pylist()
    aside = (tmp_path / "run" / "pool" / "set_aside.jsonl").read_text().splitlines()
    for row in rows:
        assert row["input_ids"] == expected[row["id"]]["input_ids"]
        assert row["labels"] == expected[row["id"]]["labels"]
    without_labels = {row_id for row_id, line in expected.items() if set(line["labels"]) == {-100}}
    assert {json.loads(line)["id"] for line in aside} == without_labels
    assert len(rows) + len(aside) == len(expected)


def test_target_prompts_equal_the_authors(tmp_path: Path) -> None:
    expected = list(map(json.loads, (GOLDEN / "target-prompts.jsonl").read_text(encoding="utf-8").splitlines()))
    data = SHARED / "data" / "targets"
    layouts = {"mmlu": data / "mmlu_csv", "tydiqa": data / "less_eval", "bbh": data / "less_eval"}
    files = {task: data / f"{task}.jsonl" for task in layouts}
    targets = [{"name": f"{task}-folder", "task": task, "path": str(path)} for task, path in layouts.items()]
    targets += [{"name": f"{task}-file", "task": task, "path": str(path)} for task, path in files.items()]
    config = write_config(
        tmp_path,
        model={"name_or_path": str(SHARED / "models" / "instruct-12m")},
        pool=[{"name": "pool", "path": str(SHARED / "data" / "pool.jsonl"), "limit": 8}],
        targets=targets,
        encoding={"template": "tulu", "max_length": 2048},
    )
    assert gradsift("encode", config) == 0
    for task in layouts:
        wanted = [(line["query"], line["completion"]) for line in expected if line["task"] == task]
        for layout in ("folder", "file"):
            prompts = json.loads((tmp_path / "run" / "targets" / f"{task}-{layout}" / "prompts.json").read_text())
            found = [(prompt["prompt"], prompt["completion"]) for prompt in prompts]
            assert sorted(found) == sorted(wanted)
