"""A folder of an adapter in a model's place: merged into its base, or refused in one line that says what it is."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from checkpoints import edit_json, save_checkpoint
from runs import gradsift, stored_features, tiny_run
from safetensors.torch import load_file, save_file

from gradsift.errors import ConfigError
from gradsift.model import ModelConfig, hidden_size, load_base_model, load_tokenizer, model_fingerprint

CPU = torch.device("cpu")


@pytest.fixture
def adapter(tmp_path: Path, tiny_model_folder: Path) -> Path:
    """A trained adapter that names its base, without a tokenizer of its own."""
    return save_checkpoint(tiny_model_folder, tmp_path / "adapter", use_rslora=True)


def config_of(folder: Path) -> ModelConfig:
    return ModelConfig(name_or_path=str(folder), dtype="float32")


def test_the_weights_are_those_that_peft_merges(adapter: Path, tiny_model_folder: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
        expected = peft.PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    model = load_base_model(config_of(adapter), CPU)
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not any("lora" in name for name, _ in model.named_modules())


def test_tokenizer_and_sizes_are_the_bases(adapter: Path, tiny_model_folder: Path) -> None:
    base = config_of(tiny_model_folder)
    assert hidden_size(config_of(adapter)) == hidden_size(base)
    assert load_tokenizer(config_of(adapter)).get_vocab() == load_tokenizer(base).get_vocab()


def test_the_fingerprint_follows_base_and_adapter(adapter: Path, tiny_model_folder: Path) -> None:
    before = model_fingerprint(config_of(adapter))
    assert before != model_fingerprint(config_of(tiny_model_folder))
    edit_json(adapter / "adapter_config.json", lora_alpha=64)
    assert model_fingerprint(config_of(adapter)) != before


def test_a_run_on_an_adapter_equals_one_on_the_merged_model(
    adapter: Path, tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = tmp_path / "merged"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_base_model(config_of(adapter), CPU).save_pretrained(merged)
    load_tokenizer(config_of(tiny_model_folder)).save_pretrained(merged)
    found = []
    for name, model in (("one", adapter), ("other", merged)):
        (tmp_path / name).mkdir()
        config = tiny_run(tmp_path / name, model)
        assert gradsift("run", config, "--until", "train") == 0
        found.append(stored_features(tmp_path / name / "run" / "features" / "pool" / "checkpoint-6"))
    assert all(torch.equal(found[0][row_id], row) for row_id, row in found[1].items())
    assert f"{adapter} is an adapter of {tiny_model_folder}, which it is merged into" in capsys.readouterr().err


@pytest.mark.parametrize("base", ["./nowhere", None, 7])
def test_an_adapter_without_its_base_is_refused(adapter: Path, base: object) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=base)
    for load in (load_tokenizer, hidden_size, model_fingerprint, lambda config: load_base_model(config, CPU)):
        with pytest.raises(ConfigError, match=r"model\.name_or_path: .*adapter is an adapter") as refusal:
            load(config_of(adapter))
        assert len(str(refusal.value).splitlines()) == 1


def test_an_adapter_of_itself_is_refused(adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(adapter))
    with pytest.raises(ConfigError, match="is an adapter of another adapter"):
        load_base_model(config_of(adapter), CPU)


def test_a_whole_model_and_an_adapter_in_one_folder_are_refused(adapter: Path, tiny_model_folder: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(tiny_model_folder / name, adapter / name)
    with pytest.raises(ConfigError, match="an adapter and a whole model in one folder"):
        load_base_model(config_of(adapter), CPU)


def test_an_adapter_that_does_not_fit_its_base_is_refused(adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", r=3)
    with pytest.raises(ConfigError, match="which can't be merged into"):
        load_base_model(config_of(adapter), CPU)


def test_an_adapter_that_lacks_a_matrix_is_refused(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[max(tensors)]
    save_file(tensors, path)
    with pytest.raises(ConfigError, match="it lacks base_model"):
        load_base_model(config_of(adapter), CPU)


def test_an_adapter_of_another_kind_of_lora_is_merged_as_peft_does(tmp_path: Path, tiny_model_folder: Path) -> None:
    import peft

    folder = save_checkpoint(tiny_model_folder, tmp_path / "dora", use_dora=True, modules_to_save=["lm_head"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = load_base_model(config_of(tiny_model_folder), CPU)
        expected = peft.PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()
    found = load_base_model(config_of(folder), CPU).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "", "a b", "/nowhere"])
def test_names_that_are_no_model_are_refused(name: str) -> None:
    for load in (load_tokenizer, hidden_size, model_fingerprint, lambda config: load_base_model(config, CPU)):
        with pytest.raises(ConfigError, match=r"model\.name_or_path: "):
            load(ModelConfig(name_or_path=name))


def test_an_adapter_is_not_merged_into_a_quantised_base(adapter: Path) -> None:
    from gradsift.model.merging import find_adapter, merge_adapter

    named = find_adapter(str(adapter), None)
    assert named is not None
    with pytest.raises(ConfigError, match="can't be merged into a base quantised to nf4"):
        merge_adapter(torch.nn.Linear(1, 1), named, "nf4")


@pytest.mark.parametrize("damage", ["lost tensor", "cut weights", "cut config", "listed config"])
def test_a_base_that_is_not_whole_is_refused(tmp_path: Path, tiny_model_folder: Path, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    weights, described = folder / "model.safetensors", folder / "config.json"
    if damage == "lost tensor":
        tensors = load_file(weights)
        tensors.pop("model.layers.1.mlp.up_proj.weight")
        save_file(tensors, weights, {"format": "pt"})
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "cut config":
        described.write_text(described.read_text()[:40])
    else:
        described.write_text(json.dumps([1]))
    with pytest.raises(ConfigError, match=r"model\.name_or_path: .*"):
        load_base_model(config_of(folder), CPU)


@pytest.mark.parametrize("keep", [0, 10, 1000, -10])
def test_pickled_weights_that_are_not_whole_are_refused(tmp_path: Path, tiny_model_folder: Path, keep: int) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert load_base_model(config_of(folder), CPU) is not None
    content = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(content[:keep])
    with pytest.raises(ConfigError, match=r"model\.name_or_path: .*can't be loaded"):
        load_base_model(config_of(folder), CPU)
