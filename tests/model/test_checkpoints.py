"""Checkpoints of others: moments on the right parameters, or a refusal with the file and the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from gradsift.errors import CheckpointError
from gradsift.model.adapters import LoraConfig, add_lora, add_saved_lora
from gradsift.model.checkpoints import (
    Checkpoint,
    adapter_shapes,
    import_checkpoint,
    load_adapter,
    load_checkpoint,
    read_moments,
)
from gradsift.model.loading import ModelConfig, load_base_model

Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> tuple[Path, Any]:
    """A checkpoint of the plain Hugging Face Trainer, and the trainer."""
    from transformers import Trainer, TrainingArguments

    folder = tmp_path_factory.mktemp("trainer")
    base = load_base_model(ModelConfig(name_or_path=str(tiny_model_folder)), torch.device("cpu"))
    model = add_lora(base, LoraConfig(r=2, alpha=4, target_modules=["q_proj", "k_proj", "down_proj"]))
    ids = torch.arange(3, 12)
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        save_steps=4,
        logging_steps=1,
        learning_rate=1e-3,
        per_device_train_batch_size=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    rows = [{"input_ids": ids, "labels": ids} for _ in range(8)]
    trainer = Trainer(model=model, args=settings, train_dataset=rows)
    trainer.train()
    return folder / "checkpoint-4", trainer


@pytest.fixture
def checkpoint(trained: tuple[Path, Any], tmp_path: Path) -> Checkpoint:
    """A copy that a test may break."""
    shutil.copytree(trained[0], tmp_path / "checkpoint-4")
    return load_checkpoint(tmp_path / "checkpoint-4")


def shapes_of(model: Any) -> Shapes:
    return {name: tuple(value.shape) for name, value in model.named_parameters() if value.requires_grad}


def rewrite_optimizer(checkpoint: Checkpoint, change: Any) -> None:
    path = checkpoint.path / "optimizer.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def test_integer_keyed_moments_land_on_their_parameters(trained: tuple[Path, Any], checkpoint: Checkpoint) -> None:
    _, trainer = trained
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    moments, adam = read_moments(checkpoint, shapes_of(trainer.model))
    assert (adam.step, adam.betas, adam.eps) == (4, (0.9, 0.999), 1e-8)
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(moments[name].first_OI, optimizer.state[parameter]["exp_avg"])
            assert torch.equal(moments[name].second_OI, optimizer.state[parameter]["exp_avg_sq"])


def test_name_keyed_moments_are_found_by_name(trained: tuple[Path, Any], checkpoint: Checkpoint) -> None:
    shapes = shapes_of(trained[1].model)
    expected, _ = read_moments(checkpoint, shapes)

    def by_name(state: dict[str, Any]) -> None:
        names = ["_fsdp_wrapped_module." + name for name in shapes]
        state["state"] = {name: state["state"][index] for index, name in enumerate(names)}
        state["param_groups"] = [{**state["param_groups"][0], "params": names}]

    rewrite_optimizer(checkpoint, by_name)
    found, _ = read_moments(checkpoint, shapes)
    assert all(torch.equal(found[name].first_OI, pair.first_OI) for name, pair in expected.items())


def test_our_own_format_holds_the_same(trained: tuple[Path, Any], checkpoint: Checkpoint, tmp_path: Path) -> None:
    shapes = shapes_of(trained[1].model)
    own = import_checkpoint(checkpoint.path, tmp_path / "own" / "checkpoint-4", shapes)
    (expected, adam), (found, own_adam) = read_moments(checkpoint, shapes), read_moments(own, shapes)
    assert (own.step, own.learning_rate, own_adam) == (checkpoint.step, checkpoint.learning_rate, adam)
    assert all(torch.equal(found[name].second_OI, pair.second_OI) for name, pair in expected.items())


def test_adapter_weights_are_loaded_as_saved(
    trained: tuple[Path, Any], checkpoint: Checkpoint, tiny_model_folder: Path
) -> None:
    base = load_base_model(ModelConfig(name_or_path=str(tiny_model_folder)), torch.device("cpu"))
    model = add_saved_lora(base, checkpoint.path)
    load_adapter(model, checkpoint, shapes_of(model))
    saved = dict(trained[1].model.named_parameters())
    assert all(torch.equal(value, saved[name]) for name, value in model.named_parameters() if value.requires_grad)


def test_shapes_are_read_without_the_model(trained: tuple[Path, Any], checkpoint: Checkpoint) -> None:
    assert adapter_shapes(checkpoint) == shapes_of(trained[1].model)


@pytest.mark.parametrize(("name", "rate"), [("checkpoint-8", 0.00078125), ("checkpoint-16", 0.00028125)])
def test_learning_rate_is_the_mean_of_the_epoch_that_ends_there(shared: Path, name: str, rate: float) -> None:
    assert load_checkpoint(shared / "golden" / name).learning_rate == pytest.approx(rate)


def test_given_learning_rate_is_taken(checkpoint: Checkpoint) -> None:
    assert load_checkpoint(checkpoint.path, 0.25).learning_rate == 0.25


def test_fingerprint_follows_the_moments(checkpoint: Checkpoint) -> None:
    before = checkpoint.fingerprint()
    rewrite_optimizer(checkpoint, lambda state: state["state"][0]["exp_avg"].add_(1))
    assert checkpoint.fingerprint() != before


def drop_exp_avg(state: dict[str, Any]) -> None:
    state["state"] = {key: {"momentum_buffer": entry["exp_avg"]} for key, entry in state["state"].items()}


def eight_bit(state: dict[str, Any]) -> None:
    state["state"] = {
        key: {"state1": entry["exp_avg"].byte(), "state2": entry["exp_avg_sq"].byte(), "step": 4}
        for key, entry in state["state"].items()
    }


def one_parameter_less(state: dict[str, Any]) -> None:
    state["param_groups"][0]["params"].pop()


def other_shape(state: dict[str, Any]) -> None:
    state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"].T.contiguous()


def emptied(state: dict[str, Any]) -> None:
    state["state"] = {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (drop_exp_avg, "momentum_buffer"),
        (eight_bit, "state1"),
        (one_parameter_less, "don't fit the adapter's 12 LoRA matrices"),
        (other_shape, "has shape"),
        (emptied, "its state is empty"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_optimizer_state_that_does_not_fit_is_refused(
    trained: tuple[Path, Any], checkpoint: Checkpoint, change: Any, reason: str
) -> None:
    rewrite_optimizer(checkpoint, change)
    with pytest.raises(CheckpointError, match=reason) as refusal:
        read_moments(checkpoint, shapes_of(trained[1].model))
    assert "optimizer.pt" in str(refusal.value)


def test_checkpoint_without_optimizer_says_what_works_without(
    trained: tuple[Path, Any], checkpoint: Checkpoint
) -> None:
    (checkpoint.path / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match=r"features\.adam=sgd"):
        read_moments(checkpoint, shapes_of(trained[1].model))


def test_state_without_learning_rates_says_how_to_give_one(checkpoint: Checkpoint) -> None:
    path = checkpoint.path / "trainer_state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "log_history": []}))
    with pytest.raises(CheckpointError, match="learning_rate: "):
        load_checkpoint(checkpoint.path)


@pytest.mark.parametrize("missing", ["adapter_config.json", "trainer_state.json"])
def test_folder_that_is_no_checkpoint_is_refused(checkpoint: Checkpoint, missing: str) -> None:
    (checkpoint.path / missing).unlink()
    with pytest.raises(CheckpointError, match=missing):
        load_checkpoint(checkpoint.path)


def test_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "nowhere")


def test_adapter_of_other_modules_is_refused(checkpoint: Checkpoint, tiny_model_folder: Path) -> None:
    base = load_base_model(ModelConfig(name_or_path=str(tiny_model_folder)), torch.device("cpu"))
    model = add_lora(base, LoraConfig(r=2, alpha=4, target_modules=["q_proj"]))
    with pytest.raises(CheckpointError, match="is not a LoRA matrix of the model"):
        load_adapter(model, checkpoint, shapes_of(model))


def test_damaged_adapter_is_refused(checkpoint: Checkpoint) -> None:
    path = checkpoint.path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="is damaged"):
        adapter_shapes(checkpoint)
