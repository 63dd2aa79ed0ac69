"""A model that a training left behind: loaded as PEFT does, or refused where its files are not whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import save_checkpoint
from safetensors.torch import load_file, save_file

from gradsift.errors import UserError
from gradsift.model import ModelConfig, load_checkpoint, load_finetuned, lora_at

CPU = torch.device("cpu")


@pytest.fixture
def trained(tmp_path: Path, tiny_model_folder: Path) -> Path:
    return save_checkpoint(tiny_model_folder, tmp_path / "less")


def test_the_trained_adapter_is_loaded(trained: Path, tiny_model_folder: Path) -> None:
    config = ModelConfig(name_or_path=str(tiny_model_folder), dtype="float32")
    found = load_finetuned(config, trained, CPU).state_dict()
    expected = lora_at(config, load_checkpoint(trained), CPU).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("damage", ["cut", "lost", "a tensor lost", "a shape changed", "config cut"])
def test_a_trained_adapter_that_is_not_whole_is_refused(trained: Path, tiny_model_folder: Path, damage: str) -> None:
    path = trained / "adapter_model.safetensors"
    tensors = load_file(path)
    name = max(tensors)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "lost":
        path.unlink()
    elif damage == "a tensor lost":
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, path)
    elif damage == "a shape changed":
        save_file({**tensors, name: tensors[name][:-1].clone()}, path)
    else:
        (trained / "adapter_config.json").write_text("{")
    with pytest.raises(UserError) as refusal:
        load_finetuned(ModelConfig(name_or_path=str(tiny_model_folder), dtype="float32"), trained, CPU)
    assert str(trained) in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1
