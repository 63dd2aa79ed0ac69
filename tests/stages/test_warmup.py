"""The warmup: which rows, which steps, and going on after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import gradsift, tiny_run
from safetensors.torch import load_file

from gradsift.machine.artifact import read_json
from gradsift.stages.warmup import warmup_rows


def test_warmup_rows_are_a_random_part_that_follows_the_seed() -> None:
    drawn = warmup_rows(1000, 0.05, seed=3)
    assert len(set(drawn)) == 50
    assert drawn == warmup_rows(1000, 0.05, seed=3)
    assert drawn != warmup_rows(1000, 0.05, seed=4)
    assert drawn != sorted(drawn)


def test_the_smallest_fraction_still_trains_on_a_row() -> None:
    assert len(warmup_rows(10, 0.001, seed=0)) == 1


@pytest.fixture(scope="module")
def warm_run(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("warm")
    assert gradsift("run", tiny_run(folder, tiny_model_folder), "--until", "warmup") == 0
    return folder / "run" / "warmup"


def test_there_is_a_checkpoint_an_epoch(warm_run: Path) -> None:
    assert {path.name for path in warm_run.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-6"}


def test_learning_rate_is_the_mean_of_the_epoch(warm_run: Path) -> None:
    """12 rows in batches of 4: three steps an epoch; one step of linear warmup (3 % of 6, rounded up), then decay."""
    rates = [0.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    for name, epoch in (("checkpoint-3", rates[:3]), ("checkpoint-6", rates[3:])):
        expected = 1.0e-3 * sum(epoch) / 3
        assert read_json(warm_run / name / "checkpoint.json")["learning_rate"] == pytest.approx(expected)


def test_moments_are_keyed_by_parameter_name(warm_run: Path) -> None:
    moments = load_file(warm_run / "checkpoint-3" / "moments.safetensors")
    adapter = load_file(warm_run / "checkpoint-3" / "adapter_model.safetensors")
    names = {name.removesuffix(".exp_avg") for name in moments if name.endswith(".exp_avg")}
    assert {name.replace(".default.", ".") for name in names} == set(adapter)
    assert all(moments[f"{name}.exp_avg_sq"].min() >= 0 for name in names)


def test_micro_batches_do_not_change_the_training(tmp_path: Path, tiny_model_folder: Path, warm_run: Path) -> None:
    """Without dropout the adapter of accumulated single examples equals that of whole batches."""
    weights = []
    for size in (1, 4):
        folder = tmp_path / str(size)
        folder.mkdir()
        config = tiny_run(folder, tiny_model_folder)
        overrides = ["warmup.lora.dropout=0", f"warmup.micro_batch_size={size}"]
        assert gradsift("run", config, "--until", "warmup", *overrides) == 0
        weights.append(load_file(folder / "run" / "warmup" / "checkpoint-6" / "adapter_model.safetensors"))
    single, whole = weights
    for name, tensor in single.items():
        assert float((tensor - whole[name]).norm()) <= 1e-3 * float(tensor.norm())


def test_trainer_state_is_gone_when_the_warmup_is_done(warm_run: Path) -> None:
    assert (warm_run / "manifest.json").is_file()
    assert not (warm_run / ".trainer").exists()


def test_layers_that_can_not_be_covered_are_refused_before_the_training_and_the_advice_is_taken(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)

    assert gradsift("run", config, "--until", "features", "warmup.lora.target_modules=[q_proj,lm_head]") == 2
    assert "lm_head sees an input of shape" in (said := capsys.readouterr().err)
    assert "set lora.target_modules to [q_proj]" in said
    assert not list((tmp_path / "run" / "warmup").glob("*"))

    assert gradsift("run", config, "--until", "features", "warmup.lora.target_modules=[q_proj]") == 0
