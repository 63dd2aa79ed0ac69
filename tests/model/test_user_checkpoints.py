"""LoRA checkpoints that another trainer has saved, used in place of a warmup."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import gradsift, largest_relative_error, small_pool, stored_features, tiny_run

from gradsift.model.checkpoints import load_checkpoint, read_moments

STEPS = 6


@pytest.fixture(scope="module")
def sft_run(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> tuple[Path, Any]:
    """A checkpoint of TRL's SFTTrainer, and the trainer as it stood when it was saved."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from peft import LoraConfig

    folder = tmp_path_factory.mktemp("sft")
    rows = [{"text": " ".join(message["content"] for message in row["messages"])} for row in small_pool()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's and PEFT's own
        trainer = trl.SFTTrainer(
            model=str(tiny_model_folder),
            args=trl.SFTConfig(
                output_dir=str(folder),
                max_steps=STEPS,
                save_steps=STEPS,
                per_device_train_batch_size=4,
                learning_rate=1e-3,
                logging_steps=1,
                report_to="none",
                use_cpu=True,
                bf16=False,
                max_length=64,
                disable_tqdm=True,
                dataset_num_proc=None,
                gradient_checkpointing=False,
            ),
            train_dataset=Dataset.from_list(rows),
            peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        )
        trainer.train()
    return folder / f"checkpoint-{STEPS}", trainer


@pytest.mark.slow
def test_moments_of_an_sft_checkpoint_land_on_their_parameters(sft_run: tuple[Path, Any]) -> None:
    path, trainer = sft_run
    trained = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    moments, adam = read_moments(load_checkpoint(path), {name: tuple(value.shape) for name, value in trained.items()})
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    assert adam.step == STEPS
    for name, parameter in trained.items():
        assert torch.equal(moments[name].first_OI, optimizer.state[parameter]["exp_avg"])
        assert torch.equal(moments[name].second_OI, optimizer.state[parameter]["exp_avg_sq"])


@pytest.mark.slow
def test_an_sft_checkpoint_gives_features_and_a_selection(
    sft_run: tuple[Path, Any], tmp_path: Path, tiny_model_folder: Path
) -> None:
    path, _ = sft_run
    config = tiny_run(tmp_path, tiny_model_folder, warmup={"checkpoints": [str(path)]})
    assert gradsift("run", config) == 0
    assert (tmp_path / "run" / "selection" / "sums" / "less.jsonl").read_text().count("\n") == 6
    manifest = json.loads((tmp_path / "run" / "features" / "pool" / path.name / "manifest.json").read_text())
    assert {name.split(".")[-4] for name in manifest["meaning"]["parameters"]} == {"q_proj", "v_proj"}


def test_our_own_checkpoint_equals_the_trainers_it_was_made_of(tmp_path: Path, tiny_model_folder: Path) -> None:
    """The same features whether a checkpoint is read in our format or as the Trainer saved it."""
    from gradsift.stages import train

    kept = tmp_path / "kept"
    config = tiny_run(tmp_path, tiny_model_folder)
    real = train.shutil.rmtree
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.shutil, "rmtree", lambda path, **options: _keep_trainer(real, path, kept, options))
        assert gradsift("run", config) == 0
    own = stored_features(next((tmp_path / "run" / "features" / "pool").glob("checkpoint-6")))
    other = tmp_path / "other"
    other.mkdir()
    config = tiny_run(other, tiny_model_folder, warmup={"checkpoints": [str(kept / "checkpoint-6")]})
    assert gradsift("run", config, "--until", "features") == 0
    found = stored_features(other / "run" / "features" / "pool" / "checkpoint-6")
    assert max(largest_relative_error(found[row_id], row) for row_id, row in own.items()) < 1e-6


def _keep_trainer(real: Any, path: Path, kept: Path, options: dict[str, Any]) -> None:
    """Keep the Trainer's folder, which a finished warmup deletes."""
    if path.name == ".trainer":
        path.rename(kept)
    elif path.exists():
        real(path, **options)
