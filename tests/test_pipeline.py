"""From the pool to the metrics through the command line: the files of the contract, and what is refused at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from runs import conversation, gradsift, gradsift_process, tiny_run, write_jsonl

from gradsift.machine.artifact import read_json

HELD_OUT = [conversation(f"h{i}", f"How much is {i} and {i + 1}?", f"It is {2 * i + 1}.", kind="odd") for i in range(5)]


@pytest.fixture
def config(tmp_path: Path, tiny_model_folder: Path) -> Path:
    """A run whose target has held-out examples."""
    config = tiny_run(tmp_path, tiny_model_folder)
    held_out = write_jsonl(tmp_path / "held_out.jsonl", HELD_OUT)
    text = config.read_text().replace(
        "subtask_column: kind", f"subtask_column: kind\n  test_path: {held_out}\n  metric: f1"
    )
    config.write_text(text)
    return config


def test_run_goes_from_the_pool_to_the_metrics(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradsift("run", config, "evaluate.base=true", "evaluate.max_new_tokens=8") == 0
    run = tmp_path / "run"
    metrics = {name: read_json(run / "evaluation" / "sums" / f"{name}.json") for name in ("less", "base")}
    assert metrics["less"]["answer_loss"]["nats_per_token"] < metrics["base"]["answer_loss"]["nats_per_token"]
    lines = (run / "evaluation" / "sums" / "less" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["h0", "h1", "h2", "h3", "h4"]
    report = (run / "evaluation" / "report.md").read_text()
    assert "| less   |" in report
    assert "| base   |" in report
    assert "on 5 held-out questions" in capsys.readouterr().out


def test_methods_stand_side_by_side_in_one_run_folder(config: Path, tmp_path: Path) -> None:
    for method in ("random", "full"):
        assert gradsift("run", config, f"select.method={method}", "evaluate.max_new_tokens=2") == 0
    for part, name in (("selection", "{}.jsonl"), ("model", "{}/manifest.json"), ("evaluation", "{}.json")):
        for method in ("random", "full"):
            assert (tmp_path / "run" / part / "sums" / name.format(method)).is_file()


@pytest.mark.slow
def test_a_new_process_gives_the_same_predictions(config: Path, tmp_path: Path) -> None:
    arguments = [config, "select.method=random", "evaluate.max_new_tokens=8"]
    assert gradsift("run", *arguments) == 0
    predictions = tmp_path / "run" / "evaluation" / "sums" / "random" / "predictions.jsonl"
    before = predictions.read_bytes()
    shutil.rmtree(tmp_path / "run" / "evaluation")
    process = gradsift_process("evaluate", *arguments)
    process.communicate()
    assert process.returncode == 0
    assert predictions.read_bytes() == before


def test_held_out_items_that_cannot_be_read_are_refused_before_any_training(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "held_out.jsonl").write_text("{}\n")
    assert gradsift("run", config) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "held_out.jsonl" in line
    assert "leave evaluation out with --until train" in line
    assert not (tmp_path / "run" / "warmup").exists()


def test_a_target_without_held_out_examples_ends_with_its_model(tmp_path: Path, tiny_model_folder: Path) -> None:
    assert gradsift("run", tiny_run(tmp_path, tiny_model_folder), "select.method=random") == 0
    assert (tmp_path / "run" / "model" / "sums" / "random" / "manifest.json").is_file()
    assert not (tmp_path / "run" / "evaluation").exists()


def test_evaluation_before_training_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gradsift("evaluate", config) == 2
    assert "run `gradsift train` first" in capsys.readouterr().err
