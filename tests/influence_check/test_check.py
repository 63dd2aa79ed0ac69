"""The influence check through the command line: its files, going on, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import conversation, gradsift, tiny_run, write_jsonl

from gradsift.config import load_config
from gradsift.influence_check.check import in_turns

SMALL: dict[str, Any] = {
    "draws": 6,
    "checkpoint_draws": 4,
    "batches": 4,
    "steps": 4,
    "batch_size": 2,
    "sketch_dims": [16],
    "rademacher_dims": [16],
    "stability_rows": 10,
    "projection_seeds": 2,
}


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """The folder of a run whose influence was checked."""
    folder = tmp_path_factory.mktemp("checked")
    assert gradsift("check", tiny_run(folder, tiny_model_folder, check=SMALL), "--influence") == 0
    return folder


def files_of(folder: Path) -> dict[str, int]:
    """When each experiment's figures were written, by path."""
    paths = (folder / "run" / "checks" / "influence").rglob("*.safetensors")
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}


def report_in(folder: Path) -> Any:
    return json.loads((folder / "run" / "checks" / "influence.json").read_text())


def test_every_experiment_is_reported(checked: Path) -> None:
    target = report_in(checked)["targets"]["sums"]

    seen = {(item["experiment"], item["draws"]) for item in target["agreement"]}
    assert seen == {("single", 6), ("single", 4), ("batch", 4), ("trajectory", 4)}
    forms = {item["form"] for item in target["agreement"]}
    assert {"reference", "adamw", "sgd", "sign", "step", "reference-without-momentum"} <= forms
    projections = {item["projection"] for item in target["projected"]}
    assert projections == {"exact", "sketch/16/0", "rademacher/16/0", "sketch/64/0"}  # the last is the run's own
    assert {item["projection"] for item in target["checkpoints"]} == {"exact", "sketch/64/0"}
    assert {item["projection"] for item in target["stability"]} == {"exact", "sketch/16", "rademacher/16"}
    assert {item["checkpoints"] for item in target["checkpoints"]} == {1, 2}


def test_projected_draws_are_those_that_steps_were_taken_on(checked: Path) -> None:
    report = report_in(checked)
    target = report["targets"]["sums"]

    def exact(records: list[Any], experiment: str) -> dict[str, float]:
        return {
            item["form"]: item["deviation"]
            for item in records
            if (item["experiment"], item["projection"], item["measure"]) == (experiment, "exact", "dot")
            and item["checkpoint"] == report["main_checkpoint"]
        }

    expected, found = exact(target["agreement"], "single"), exact(target["projected"], "projected")

    assert found == {form: pytest.approx(expected[form], rel=1e-4) for form in found}


def test_what_is_known_of_the_checkpoints_is_reported(checked: Path) -> None:
    first, last = report_in(checked)["checkpoints"]

    assert (first["name"], last["name"]) == ("checkpoint-3", "checkpoint-6")
    assert 0 <= first["epsilon"]["reference"] <= 1
    assert -1 <= first["pairwise_cosine"]["reference"] <= 1


def test_the_tables_are_written_too(checked: Path) -> None:
    text = (checked / "run" / "checks" / "influence.md").read_text()

    assert "## sums" in text
    assert "| reference-without-momentum" in text


def test_the_step_itself_foretells_what_it_does(checked: Path) -> None:
    report = report_in(checked)

    found = [
        item["pearson"]
        for item in report["targets"]["sums"]["agreement"]
        if (item["experiment"], item["form"], item["measure"]) == ("single", "step", "dot")
    ]

    assert min(found) > 0.9


def test_finished_experiments_are_not_done_again(checked: Path) -> None:
    before = files_of(checked)

    assert gradsift("check", checked / "config.yaml", "--influence") == 0

    assert files_of(checked) == before


def test_another_setting_repeats_only_what_depends_on_it(checked: Path) -> None:
    before = files_of(checked)

    assert gradsift("check", checked / "config.yaml", "--influence", "check.steps=3") == 0

    after = files_of(checked)
    assert {Path(name).stem for name in after if after[name] != before[name]} == {"trajectory"}


def test_another_projection_takes_no_step_again(checked: Path) -> None:
    before = files_of(checked)

    assert gradsift("check", checked / "config.yaml", "--influence", "check.steps=3", "check.sketch_dims=[8]") == 0

    after = files_of(checked)
    assert {Path(name).stem for name in after if after[name] != before[name]} == {"projected", "stability"}


def test_a_target_that_is_added_is_measured_alone(checked: Path) -> None:
    config = yaml.safe_load((checked / "config.yaml").read_text())
    more = write_jsonl(checked / "more.jsonl", [conversation("m0", "How are you?", "I am well.")])
    config["targets"].append({"name": "more", "path": str(more)})
    (checked / "more.yaml").write_text(yaml.safe_dump(config))
    before = files_of(checked)

    assert gradsift("check", checked / "more.yaml", "--influence", "check.steps=3") == 0

    after = files_of(checked)
    steps_taken = [name for name in before if Path(name).stem in ("single", "batch")]
    assert steps_taken
    assert all(after[name] == before[name] for name in steps_taken)
    assert any("/more/" in name for name in after)


def test_the_run_goes_on_with_other_settings_of_the_check(checked: Path) -> None:
    assert gradsift("run", checked / "config.yaml", "--until", "warmup", "check.draws=5") == 0


def test_a_plot_is_drawn(checked: Path) -> None:

    assert gradsift("check", checked / "config.yaml", "--influence", "check.steps=3") == 0

    assert (checked / "run" / "checks" / "influence.png").read_bytes().startswith(b"\x89PNG")


def test_without_influence_one_line_says_what_is_there(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradsift("check", tiny_run(tmp_path, tiny_model_folder)) == 2

    assert "--influence" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("check.draws=1", "check.draws"),
        ("check.drwas=9", "did you mean 'draws'"),
        ("check.sketch_dims=[0]", "check.sketch_dims"),
    ],
)
def test_bad_settings_are_one_line(
    setting: str, message: str, tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradsift("check", tiny_run(tmp_path, tiny_model_folder), "--influence", setting) == 2

    captured = capsys.readouterr().err
    assert message in captured
    assert len(captured.strip().splitlines()) == 1


def test_an_unknown_checkpoint_is_one_line(checked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gradsift("check", checked / "config.yaml", "--influence", "check.checkpoint=checkpoint-7") == 2

    assert "check.checkpoint: there is no checkpoint-7; did you mean 'checkpoint-" in capsys.readouterr().err


def test_a_quantised_store_is_measured_as_it_comes_back(tmp_path: Path, tiny_model_folder: Path) -> None:
    """The run's own projection besides at its seeds; 8 bits of 64 values change next to nothing, 1 bit does."""
    found = {}
    for dtype in ("int8", "int1"):
        folder = tmp_path / dtype
        folder.mkdir()
        features = {"projection": {"dim": 64}, "store_dtype": dtype, "shard_rows": 8}
        config = tiny_run(folder, tiny_model_folder, features=features, check={**SMALL, "sketch_dims": [64]})
        assert gradsift("check", config, "--influence") == 0
        found[dtype] = report_in(folder)["targets"]["sums"]
    for dtype, target in found.items():
        assert {item["projection"] for item in target["checkpoints"]} == {
            "exact",
            "sketch/64/0",
            f"sketch/64/0/{dtype}",
        }
        between = {item["projection"]: item.get("overlap_between_seeds") for item in target["stability"]}
        assert between[f"sketch/64/{dtype}"] is not None
    for item, stored in projected_twice(found["int8"], "int8"):
        assert stored["pearson"] == pytest.approx(item["pearson"], abs=0.1)
    assert any(
        abs(stored["pearson"] - item["pearson"]) > 0.01 for item, stored in projected_twice(found["int1"], "int1")
    )


def projected_twice(target: Any, dtype: str) -> list[tuple[Any, Any]]:
    """What single examples agree in through the run's projection, and as its store has them."""
    by_name = {(item["projection"], item["form"], item["measure"]): item for item in target["projected"]}
    own = [key for key in by_name if key[0] == "sketch/64/0"]
    assert own
    return [(by_name[key], by_name[f"{key[0]}/{dtype}", key[1], key[2]]) for key in own]


def test_too_little_memory_for_the_targets_gradients_is_one_line(
    checked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gradsift.influence_check.check.free_memory", lambda device: 1000)

    assert gradsift("check", checked / "config.yaml", "--influence", "check.batches=3") == 2

    assert "set check.per_subtask=false" in capsys.readouterr().err


def test_the_checks_defaults_stand_in_its_section(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = load_config(tiny_run(tmp_path, tiny_model_folder))

    assert config.check.draws == 99  # as many as in the authors' experiment


def test_examples_are_drawn_over_the_subtasks_in_turns() -> None:
    subtasks = ["a"] * 6 + ["b"] * 2

    chosen = in_turns(subtasks, [10] * 8, tokens=40, seed=0)

    assert [subtasks[position] for position in chosen] == ["a", "a", "b", "b"]


def test_all_examples_are_taken_without_a_budget() -> None:
    assert in_turns(["a", "b", "a"], [10] * 3, tokens=None, seed=0) == [0, 1, 2]
