"""A finished warmup whose files are no longer what it left: noticed by every stage that uses them, in one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import edit_json
from runs import TINY, gradsift, small_pool, stored_features, tiny_run, without_checks, write_jsonl
from safetensors.torch import load_file, save_file

from gradsift.machine import file_sha256
from gradsift.model import load_checkpoint


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A folder with a model of its own and a run that has its features, and beside it a copy of the whole."""
    folder = tmp_path_factory.mktemp("finished") / "work"
    shutil.copytree(tiny_model_folder, folder / "model")
    assert gradsift("run", tiny_run(folder, folder / "model"), "--until", "features") == 0
    shutil.copytree(folder, folder.with_name("kept"))
    return folder


@pytest.fixture
def run_again(finished: Path) -> Callable[[], Path]:
    """Puts the finished run back as it was; its config."""

    def put_back() -> Path:
        shutil.rmtree(finished)
        shutil.copytree(finished.with_name("kept"), finished)
        return finished / "config.yaml"

    return put_back


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "adapter_model.safetensors": lambda warmup: flip_a_bit(warmup / "checkpoint-3" / "adapter_model.safetensors"),
    "moments.safetensors": lambda warmup: flip_a_bit(warmup / "checkpoint-3" / "moments.safetensors"),
    "adapter_config.json": lambda warmup: edit_json(warmup / "checkpoint-3" / "adapter_config.json", lora_alpha=64),
    "checkpoint.json": lambda warmup: edit_json(warmup / "checkpoint-3" / "checkpoint.json", learning_rate=1.0),
    "checkpoint-6 was taken away": lambda warmup: shutil.rmtree(warmup / "checkpoint-6"),
    "checkpoint-9 is no checkpoint": lambda warmup: shutil.copytree(warmup / "checkpoint-6", warmup / "checkpoint-9"),
    "manifest.json is damaged": lambda warmup: (warmup / "manifest.json").write_text("{}"),
}


@pytest.mark.parametrize("command", ["warmup", "features", "score"])
@pytest.mark.parametrize("what", CHANGES)
def test_a_checkpoint_changed_after_the_warmup_is_refused(
    run_again: Callable[[], Path], what: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_again()
    CHANGES[what](config.parent / "run" / "warmup")
    capsys.readouterr()
    assert gradsift(command, config) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("gradsift: ")]
    assert what in line


def test_a_run_that_was_copied_is_accepted(run_again: Callable[[], Path]) -> None:
    assert gradsift("run", run_again(), "--until", "select") == 0


@pytest.mark.parametrize("command", ["warmup", "features"])
def test_another_base_after_the_warmup_is_refused(
    run_again: Callable[[], Path], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_again()
    for manifest in (config.parent / "run").glob("*/**/manifest.json"):
        if manifest.parent.name in ("pool", "sums"):  # encoded before the base was kept with the rows
            edit_json(manifest, base_model=None, checksum=None)
    path = config.parent / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, path, {"format": "pt"})
    capsys.readouterr()
    assert gradsift(command, config) == 2
    assert "is not what the warmup in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("noted", "line"), [('{"base_model": "another"}', "is not what the warmup in"), ("{", "base.json: is damaged")]
)
def test_no_other_base_goes_on_with_an_unfinished_warmup(
    tmp_path: Path, tiny_model_folder: Path, noted: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert gradsift("run", config, "--until", "encode") == 0
    folder = tmp_path / "run" / "warmup" / ".trainer"
    folder.mkdir(parents=True)
    (folder / "base.json").write_text(noted)
    capsys.readouterr()
    assert gradsift("warmup", config) == 2
    assert line in capsys.readouterr().err


def without_checksums(run: Path) -> None:
    """Manifests and stores as they were before checksums: no files, base or adapter in them."""
    manifest = run / "warmup" / "manifest.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({key: value for key, value in facts.items() if key not in ("files", "base_model")}))
    for path in run.glob("features/**/manifest.json"):
        facts = json.loads(path.read_text())
        facts.pop("checksum")
        facts["meaning"].pop("adapter")
        dated = dataclasses.replace(load_checkpoint(run / "warmup" / path.parent.name), is_dated=True)
        facts["meaning"]["checkpoint"] = dated.fingerprint()
        for record in facts["shards"]:
            without_checks(path.parent / record["file"])
            record["sha256"] = file_sha256(path.parent / record["file"])
        path.write_text(json.dumps(facts))


def test_a_run_from_before_checksums_goes_on(run_again: Callable[[], Path]) -> None:
    config = run_again()
    run = config.parent / "run"
    without_checksums(run)
    before = {path: path.stat().st_mtime_ns for path in run.glob("features/**/shard-*")}
    assert gradsift("run", config, "--until", "select") == 0
    assert {path: path.stat().st_mtime_ns for path in run.glob("features/**/shard-*")} == before


@pytest.mark.parametrize(
    ("file", "edit"),
    [
        ("adapter_config.json", {"lora_alpha": 64}),
        ("adapter_config.json", {"use_rslora": True}),
        ("checkpoint.json", {"eps": 1e-6}),
        ("checkpoint.json", {"step": 4}),
    ],
)
def test_an_edit_in_a_run_from_before_checksums_is_refused(
    run_again: Callable[[], Path], file: str, edit: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_again()
    without_checksums(config.parent / "run")
    edit_json(config.parent / "run" / "warmup" / "checkpoint-3" / file, **edit)
    capsys.readouterr()
    assert gradsift("features", config) == 2
    line = capsys.readouterr().err
    assert f"{file} says {next(iter(edit))}" in line


def test_eight_rows_at_one_half_in_batches_of_four_are_selected_from(tmp_path: Path, tiny_model_folder: Path) -> None:
    """One step in one epoch: it trains at the whole rate, and the checkpoint carries weight."""
    pool = write_jsonl(tmp_path / "eight.jsonl", small_pool(8))
    config = tiny_run(
        tmp_path,
        tiny_model_folder,
        pool=[{"name": "pool", "path": str(pool)}],
        warmup={**TINY["warmup"], "epochs": 1},
    )
    assert gradsift("run", config, "--until", "select") == 0
    facts = json.loads((tmp_path / "run" / "warmup" / "checkpoint-1" / "checkpoint.json").read_text())
    assert facts["learning_rate"] == pytest.approx(1e-3)
    weights = load_file(tmp_path / "run" / "warmup" / "checkpoint-1" / "adapter_model.safetensors")
    assert all(float(tensor.abs().max()) > 0 for name, tensor in weights.items() if "lora_B" in name)
    features = stored_features(tmp_path / "run" / "features" / "pool" / "checkpoint-1")
    assert torch.stack(list(features.values())).isfinite().all()
