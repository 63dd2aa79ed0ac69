"""`tov` through the command line: trainings on the targets, losses before and after, the fall of each row's loss."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from runs import conversation, gradsift, largest_relative_error, stored_features, tiny_run, write_jsonl
from stores import stopped_after_a_shard

from gradsift.config import load_config
from gradsift.encoding import Corpus, pad_rows
from gradsift.machine.artifact import read_json
from gradsift.model import ModelConfig, load_finetuned

UNTIL_SELECT = ("--until", "select", "select.method=tov")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A folder with a config and its run, selected by `tov`."""
    folder = tmp_path_factory.mktemp("tov")
    assert gradsift("run", tiny_run(folder, tiny_model_folder), *UNTIL_SELECT) == 0
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A config of its own on a copy of that run."""
    shutil.copytree(finished / "run", tmp_path / "run")
    text = (finished / "config.yaml").read_text().replace(str(finished / "run"), str(tmp_path / "run"))
    (tmp_path / "config.yaml").write_text(text)
    return tmp_path / "config.yaml"


def losses(folder: Path, name: str) -> dict[str, float]:
    stored = stored_features(folder / "run" / "features" / "pool" / name)
    return {row_id: float(row_K[0]) for row_id, row_K in stored.items()}


def scores(folder: Path) -> dict[str, float]:
    table = pq.read_table(folder / "run" / "scores" / "sums" / "tov.parquet")
    return dict(zip(table["id"].to_pylist(), table["score"].to_pylist(), strict=True))


def naive_losses(folder: Path, adapter: Path | None) -> dict[str, float]:
    """Each row alone through plain transformers and PEFT."""
    config = load_config(folder / "config.yaml")
    model: Any = load_finetuned(ModelConfig(name_or_path=config.model.name_or_path), adapter, torch.device("cpu"))
    found, corpus = {}, Corpus(folder / "run" / "pool")
    for row in corpus.rows(0, corpus.num_rows):
        batch = pad_rows([row])
        with torch.no_grad():
            found[row.id] = float(model(batch.input_ids_BT, labels=batch.labels_BT).loss)
    return found


def test_it_selects_the_rows_whose_loss_falls_most(finished: Path) -> None:
    before, after = losses(finished, "loss"), losses(finished, "tov/sums")
    fall = {row_id: before[row_id] - after[row_id] for row_id in before}
    assert scores(finished) == pytest.approx(fall)
    lines = (finished / "run" / "selection" / "sums" / "tov.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == sorted(fall, key=lambda row_id: -fall[row_id])[:6]
    assert set(lines) <= set((finished / "pool.jsonl").read_text().splitlines())


def test_losses_before_and_after_are_those_of_a_naive_loop(finished: Path) -> None:
    for name, adapter in (("loss", None), ("tov/sums", finished / "run" / "tov" / "sums")):
        assert losses(finished, name) == pytest.approx(naive_losses(finished, adapter), rel=1e-5)


def test_the_score_is_the_same_for_all_subtasks(finished: Path) -> None:
    table = pq.read_table(finished / "run" / "scores" / "sums" / "tov.parquet")
    for score, of_subtasks in zip(table["score"].to_pylist(), table["subtask_scores"].to_pylist(), strict=True):
        assert of_subtasks == [score, score]


def test_it_needs_no_warmup_and_no_features_of_the_target(finished: Path) -> None:
    assert not (finished / "run" / "warmup").exists()
    assert not (finished / "run" / "features" / "targets").exists()
    assert read_json(finished / "run" / "features" / "pool" / "tov" / "sums" / "manifest.json")["meaning"]["dtype"] == (
        "float32"
    )


def test_the_training_keys_it_leaves_out_are_the_warmups(finished: Path) -> None:
    tov = load_config(finished / "config.yaml", ["baselines.tov.epochs=3", "baselines.tov.lora.r=2"]).baselines.tov
    assert (tov.epochs, tov.learning_rate, tov.batch_size) == (3, 1e-3, 4)
    assert (tov.lora.r, tov.lora.alpha) == (2, 16)


def test_a_fall_relative_to_the_loss_before_is_scored_from_the_same_stores(finished: Path, copied: Path) -> None:
    assert gradsift("run", copied, *UNTIL_SELECT, "baselines.tov.drop=relative") == 0
    before, after = losses(finished, "loss"), losses(finished, "tov/sums")
    expected = {row_id: (before[row_id] - after[row_id]) / before[row_id] for row_id in before}
    assert scores(copied.parent) == pytest.approx(expected, rel=1e-4)


def test_a_finished_run_started_again_changes_no_file(copied: Path) -> None:
    written = {path: path.stat().st_mtime_ns for path in copied.parent.rglob("*") if path.is_file()}
    assert gradsift("run", copied, *UNTIL_SELECT) == 0
    changed = {path.name for path, before in written.items() if path.stat().st_mtime_ns != before}
    assert changed <= {"config.yaml", "environment.json", ".lock"}


def test_a_new_target_takes_a_training_and_a_pass_of_its_own(copied: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.parent.glob("run/features/**/shard-*")}
    values = yaml.safe_load(copied.read_text())
    more = write_jsonl(copied.parent / "more.jsonl", [conversation("m0", "Say one.", "One.")])
    values["targets"].append({"name": "more", "path": str(more)})
    copied.write_text(yaml.safe_dump(values))
    assert gradsift("run", copied, *UNTIL_SELECT) == 0
    after = {path: path.stat().st_mtime_ns for path in copied.parent.glob("run/features/**/shard-*")}
    assert after.items() >= before.items()
    assert {path.parent.name for path in after.keys() - before.keys()} == {"more"}
    one_by_one = {name: losses(copied.parent, f"tov/{name}") for name in ("sums", "more")}
    shutil.rmtree(copied.parent / "run" / "features")
    assert gradsift("run", copied, *UNTIL_SELECT) == 0
    assert {name: losses(copied.parent, f"tov/{name}") for name in one_by_one} == one_by_one
    assert one_by_one["sums"] != one_by_one["more"]


def test_a_training_with_other_settings_is_refused(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gradsift("run", copied, *UNTIL_SELECT, "baselines.tov.epochs=3") == 2
    assert "train.epochs was 2, now 3" in capsys.readouterr().err
    assert gradsift("run", copied, *UNTIL_SELECT, "baselines.tov.micro_batch_size=1") == 0


@pytest.mark.parametrize("command", ["warmup", "features", "score"])
def test_a_changed_adapter_is_refused(copied: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = copied.parent / "run" / "tov" / "sums" / "adapter_model.safetensors"
    content = bytearray(adapter.read_bytes())
    content[-3] ^= 1
    adapter.write_bytes(content)
    assert gradsift(command, copied, "select.method=tov") == 2
    assert "isn't what was trained" in capsys.readouterr().err


def test_losses_of_another_training_are_refused(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copied.parent / "run" / "tov")
    assert gradsift("run", copied, *UNTIL_SELECT, "baselines.tov.epochs=3") == 2
    assert "tuned" in capsys.readouterr().err
    shutil.rmtree(copied.parent / "run" / "features" / "pool" / "tov")
    assert gradsift("run", copied, *UNTIL_SELECT, "baselines.tov.epochs=3") == 0


@pytest.mark.parametrize(("command", "missing"), [("features", "gradsift warmup"), ("score", "unfinished")])
def test_a_stage_too_early_says_what_is_missing(
    command: str, missing: str, tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradsift(command, tiny_run(tmp_path, tiny_model_folder), "select.method=tov") == 2
    assert missing in capsys.readouterr().err


def test_a_run_that_is_stopped_in_training_and_between_shards_ends_alike(
    finished: Path, tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    marked = Path.touch

    def stopped_after_an_epoch(path: Path, *arguments: Any) -> None:
        marked(path, *arguments)
        if path.name == "complete":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "touch", stopped_after_an_epoch)
        assert gradsift("run", config, *UNTIL_SELECT) == 130
    with stopped_after_a_shard("tov"):
        assert gradsift("run", config, *UNTIL_SELECT) == 130
    assert gradsift("run", config, *UNTIL_SELECT) == 0
    for file in ("selection/sums/tov.jsonl", "tov/sums/adapter_model.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (finished / "run" / file).read_bytes()


@pytest.mark.parametrize("overrides", [["features.tokens_per_batch=1"], ["features.shard_rows=5"]], ids=str)
def test_losses_do_not_depend_on(overrides: list[str], finished: Path, tmp_path: Path) -> None:
    arguments = [f"run_dir={tmp_path / 'run'}", "select.method=tov", *overrides]
    assert gradsift("run", finished / "config.yaml", "--until", "features", *arguments) == 0
    found, expected = (stored_features(folder / "run/features/pool/tov/sums") for folder in (tmp_path, finished))
    for row_id, row_K in expected.items():
        assert largest_relative_error(found[row_id], row_K) < 1e-5
