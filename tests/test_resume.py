"""Runs that are killed, gone on with, or added to."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import yaml
from runs import conversation, gradsift, gradsift_process, tiny_run, write_jsonl

SELECTION = Path("run", "selection", "sums", "less.jsonl")


def shard_times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("run/features/**/shard-*.safetensors")}


def test_a_finished_run_started_again_changes_no_file(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert gradsift("run", config) == 0
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert gradsift("run", config) == 0
    changed = {path.name for path, before in written.items() if path.stat().st_mtime_ns != before}
    assert changed <= {"config.yaml", "environment.json", ".lock"}


def test_only_missing_shards_are_made_again(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert gradsift("run", config) == 0
    before, selected = shard_times(tmp_path), (tmp_path / SELECTION).read_bytes()
    store = next((tmp_path / "run" / "features" / "pool").iterdir())
    lost = store / "shard-00001.safetensors"
    lost.unlink()
    (store / "manifest.json").unlink()
    assert gradsift("run", config) == 0
    remade = {path for path, when in shard_times(tmp_path).items() if before[path] != when}
    assert remade == {lost}
    assert (tmp_path / SELECTION).read_bytes() == selected


def test_a_new_target_computes_no_pool_gradient(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert gradsift("run", config) == 0
    before = shard_times(tmp_path)
    values = yaml.safe_load(config.read_text())
    more = write_jsonl(tmp_path / "more.jsonl", [conversation("m0", "Say one.", "One.")])
    values["targets"].append({"name": "more", "path": str(more)})
    config.write_text(yaml.safe_dump(values))
    assert gradsift("run", config) == 0
    after = shard_times(tmp_path)
    assert all(after[path] == when for path, when in before.items())
    assert all("more" in path.parts for path in after.keys() - before.keys())
    assert (tmp_path / "run" / "selection" / "more" / "less.jsonl").is_file()


def test_another_fraction_selects_again_from_the_same_scores(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert gradsift("run", config, "--until", "select") == 0
    first = (tmp_path / SELECTION).read_bytes().splitlines()
    assert gradsift("run", config, "--until", "select", "select.fraction=0.5") == 0
    second = (tmp_path / SELECTION).read_bytes().splitlines()
    assert len(second) == 12
    assert second[: len(first)] == first


@pytest.mark.slow
def test_killed_at_any_moment_the_run_ends_with_the_same_selection(tmp_path: Path, tiny_model_folder: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert gradsift("run", tiny_run(whole, tiny_model_folder)) == 0
    config = tiny_run(killed, tiny_model_folder)
    for appears in (
        "pool/manifest.json",
        "warmup/.trainer/checkpoint-*/trainer_state.json",
        "warmup/checkpoint-*/checkpoint.json",
        "features/pool/*/shard-00000.safetensors",
        "features/targets/*/*/shard-00000.safetensors",
        "scores/sums/less.parquet",
    ):
        _kill_when(killed / "run", appears, config)
    before = shard_times(killed)
    assert gradsift("run", config) == 0
    after = shard_times(killed)
    assert all(after[path] == when for path, when in before.items())
    assert (killed / SELECTION).read_bytes() == (whole / SELECTION).read_bytes()


def _kill_when(run: Path, appears: str, config: Path) -> None:
    """Start the run in a process group of its own and kill it, children too, as soon as the file is there."""
    process = gradsift_process("run", config, start_new_session=True)
    while process.poll() is None and not list(run.glob(appears)):
        time.sleep(0.005)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
