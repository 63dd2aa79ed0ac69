"""A checkpoint's files, damaged or of another kind than plain LoRA: one line at load, before any work."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import STATE, copied, edit_json, save_checkpoint
from runs import gradsift, tiny_run
from safetensors.torch import load_file, save_file

from gradsift.errors import CheckpointError, ConfigError
from gradsift.model import LoraConfig, ModelConfig, add_lora, load_base_model, load_checkpoint, lora_at
from gradsift.stages.warmup import WarmupConfig, saved_checkpoints

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    return save_checkpoint(tiny_model_folder, tmp_path_factory.mktemp("saved") / "checkpoint-4")


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return copied(saved, tmp_path / "checkpoint-4")


def config_of(folder: Path) -> ModelConfig:
    return ModelConfig(name_or_path=str(folder), dtype="float32")


def refusal_of(call: Callable[[], Any], kind: type[Exception] = CheckpointError) -> str:
    """The one line that is said."""
    with pytest.raises(kind) as refusal:
        call()
    assert len(str(refusal.value).splitlines()) == 1
    return str(refusal.value)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", '"text"', "\x00", '{"global_step": null}', "[" * 100_000, json.dumps(STATE)[:50]],
    ids=lambda content: repr(content[:20]),
)
def test_a_trainer_state_that_is_damaged_is_refused(checkpoint: Path, content: str) -> None:
    (checkpoint / "trainer_state.json").write_text(content)
    assert "trainer_state.json: is damaged" in refusal_of(lambda: load_checkpoint(checkpoint))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("global_step", 0),
        ("global_step", -4),
        ("global_step", "four"),
        ("global_step", 10**400),
        ("epoch", float("nan")),
        ("epoch", None),
        ("epoch", -1),
        ("log_history", {}),
        ("log_history", [1]),
        ("log_history", [{"epoch": 1.0, "learning_rate": float("nan")}]),
        ("log_history", [{"epoch": 1.0, "learning_rate": -1e-3}]),
        ("log_history", [{"epoch": 1.0, "learning_rate": [1]}]),
    ],
)
def test_a_value_of_the_trainer_state_that_can_not_be_is_named(checkpoint: Path, key: str, value: Any) -> None:
    edit_json(checkpoint / "trainer_state.json", **{key: value})
    line = refusal_of(lambda: load_checkpoint(checkpoint))
    assert "trainer_state.json" in line
    assert key in line


def test_a_learning_rate_in_the_config_needs_no_log(checkpoint: Path) -> None:
    (checkpoint / "trainer_state.json").write_text('{"global_step": 4}')
    assert load_checkpoint(checkpoint, 0.5).learning_rate == 0.5


OWN = {"step": 4, "learning_rate": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", 0),
        ("step", None),
        ("learning_rate", -1.0),
        ("learning_rate", float("inf")),
        ("betas", [0.9]),
        ("betas", [0.9, 1.0]),
        ("eps", -1.0),
        ("eps", "small"),
    ],
)
def test_a_value_of_our_own_checkpoint_that_can_not_be_is_named(checkpoint: Path, key: str, value: Any) -> None:
    (checkpoint / "checkpoint.json").write_text(json.dumps({**OWN, key: value}))
    assert f"checkpoint.json: is damaged ({key}" in refusal_of(lambda: load_checkpoint(checkpoint))


def test_adams_settings_of_our_own_checkpoint_are_part_of_its_fingerprint(checkpoint: Path) -> None:
    prints = []
    for edit in ({}, {"step": 5}, {"eps": 1e-6}, {"betas": [0.9, 0.99]}, {"learning_rate": 1.0}):
        (checkpoint / "checkpoint.json").write_text(json.dumps({**OWN, **edit}))
        prints.append(load_checkpoint(checkpoint).fingerprint())
    assert len(set(prints)) == 4
    assert prints[0] == prints[4]  # the learning rate weighs the score, and changes no feature


@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True},
        {"bias": "lora_only"},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1, 2]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"init_lora_weights": "mica"},
    ],
    ids=str,
)
def test_more_than_plain_lora_is_refused_at_load(tmp_path: Path, tiny_model_folder: Path, lora: dict[str, Any]) -> None:
    folder = save_checkpoint(tiny_model_folder, tmp_path / "checkpoint-4", **lora)
    assert "plain LoRA" in refusal_of(lambda: load_checkpoint(folder))


def other_adapters() -> dict[str, Any]:
    import peft

    common = {"task_type": "CAUSAL_LM"}
    return {
        "ADALORA": peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["q_proj"], **common),
        "LOHA": peft.LoHaConfig(r=4, target_modules=["q_proj"], **common),
        "LOKR": peft.LoKrConfig(r=4, target_modules=["q_proj"], **common),
        "IA3": peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[], **common),
        "PROMPT_TUNING": peft.PromptTuningConfig(num_virtual_tokens=2, **common),
        "PREFIX_TUNING": peft.PrefixTuningConfig(num_virtual_tokens=2, **common),
    }


@pytest.mark.parametrize("kind", ["ADALORA", "LOHA", "LOKR", "IA3", "PROMPT_TUNING", "PREFIX_TUNING"])
def test_an_adapter_of_another_kind_is_refused_by_name(tmp_path: Path, tiny_model_folder: Path, kind: str) -> None:
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(load_base_model(config_of(tiny_model_folder), CPU), other_adapters()[kind])
        model.save_pretrained(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text(json.dumps(STATE))
    assert f"of the kind {kind}" in refusal_of(lambda: load_checkpoint(tmp_path / "checkpoint-4"))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"peft_type": "WAVES"}, "of the kind WAVES"),
        ({"peft_type": None}, "peft_type"),
        ({"r": 10**9}, "says rank 1000000000"),
        ({"r": 0}, "r: "),
        ({"r": 10**30}, "says rank"),
        ({"lora_alpha": "much"}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern"),
        ({"rank_pattern": {"q_proj": 2}}, "says rank 2"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"target_modules": [1, 2]}, "target_modules"),
    ],
    ids=str,
)
def test_an_adapters_config_that_can_not_be_is_refused_at_load(
    checkpoint: Path, edit: dict[str, Any], reason: str
) -> None:
    edit_json(checkpoint / "adapter_config.json", **edit)
    line = refusal_of(lambda: load_checkpoint(checkpoint))
    assert "adapter_config.json" in line
    assert reason in line


@pytest.mark.parametrize(
    "edit",
    [{"target_modules": "("}, {"alpha_pattern": {"(": 2}}, {"target_modules": ["nothing"]}, {"layers_pattern": "["}],
    ids=str,
)
def test_what_only_peft_can_tell_is_refused_in_one_line(
    checkpoint: Path, tiny_model_folder: Path, edit: dict[str, Any]
) -> None:
    more = {"layers_to_transform": [0]} if "layers_pattern" in edit else {}
    edit_json(checkpoint / "adapter_config.json", **edit, **more)
    line = refusal_of(lambda: lora_at(config_of(tiny_model_folder), load_checkpoint(checkpoint), CPU))
    assert "adapter_config.json: the adapter doesn't fit the model" in line


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "lacks base_model.model.model.layers.0.self_attn.o_proj"),
        ({"target_modules": ["q_proj"]}, "v_proj.lora_A.weight is not a LoRA matrix of the model"),
        ({"layers_to_transform": [0]}, "layers.1.self_attn.q_proj.lora_A.weight is not a LoRA matrix of the model"),
    ],
    ids=str,
)
def test_a_config_of_other_modules_than_the_matrices_is_refused(
    checkpoint: Path, tiny_model_folder: Path, edit: dict[str, Any], reason: str
) -> None:
    edit_json(checkpoint / "adapter_config.json", **edit)
    assert reason in refusal_of(lambda: lora_at(config_of(tiny_model_folder), load_checkpoint(checkpoint), CPU))


@pytest.mark.parametrize("lora", [{"r": 10**9}, {"r": 10**15}, {"target_modules": "("}, {"target_modules": ["no"]}])
def test_a_fresh_adapter_that_can_not_be_is_refused(tiny_model_folder: Path, lora: dict[str, Any]) -> None:
    base = load_base_model(config_of(tiny_model_folder), CPU)
    refusal_of(lambda: add_lora(base, LoraConfig(**lora)), ConfigError)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_cut_weights_are_refused_at_load(checkpoint: Path, kind: str, keep: int) -> None:
    path = checkpoint / f"adapter_model.{kind}"
    if kind == "bin":
        torch.save(load_file(path.with_suffix(".safetensors")), path)
        path.with_suffix(".safetensors").unlink()
    path.write_bytes(path.read_bytes()[:keep])
    assert path.name in refusal_of(lambda: load_checkpoint(checkpoint))


def test_an_adapter_in_a_pickle_is_read_like_one_in_safetensors(checkpoint: Path, tiny_model_folder: Path) -> None:
    expected = lora_at(config_of(tiny_model_folder), load_checkpoint(checkpoint), CPU).state_dict()
    path = checkpoint / "adapter_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    found = lora_at(config_of(tiny_model_folder), load_checkpoint(checkpoint), CPU).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_an_adapter_that_holds_no_numbers_is_refused(checkpoint: Path, tiny_model_folder: Path, value: float) -> None:
    path = checkpoint / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = value
    save_file(tensors, path)
    line = refusal_of(lambda: lora_at(config_of(tiny_model_folder), load_checkpoint(checkpoint), CPU))
    assert "not numbers" in line


@pytest.fixture
def resized(tmp_path: Path, tiny_model_folder: Path) -> tuple[Path, Path]:
    """A base with eight tokens more, and a checkpoint of it that PEFT has saved with its embeddings."""
    folder = tmp_path / "resized"
    shutil.copytree(tiny_model_folder, folder)
    model: Any = load_base_model(config_of(tiny_model_folder), CPU)
    model.resize_token_embeddings(model.config.vocab_size + 8)
    model.save_pretrained(folder)
    checkpoint = save_checkpoint(folder, tmp_path / "checkpoint-4")
    weights = load_file(checkpoint / "adapter_model.safetensors")
    state = model.state_dict()
    saved = {f"base_model.model.{name}": state[name] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    save_file({**weights, **saved}, checkpoint / "adapter_model.safetensors")
    return folder, checkpoint


def test_embeddings_saved_with_the_adapter_are_accepted_where_they_are_the_bases(resized: tuple[Path, Path]) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    folder, path = resized
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        expected = peft.PeftModel.from_pretrained(base, path).state_dict()
    found = lora_at(config_of(folder), load_checkpoint(path), CPU).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_embeddings_of_another_size_are_told_with_what_to_do(
    resized: tuple[Path, Path], tiny_model_folder: Path
) -> None:
    line = refusal_of(lambda: lora_at(config_of(tiny_model_folder), load_checkpoint(resized[1]), CPU))
    assert "resize_token_embeddings(" in line


def test_embeddings_of_other_values_are_told_with_what_to_do(resized: tuple[Path, Path]) -> None:
    folder, path = resized
    weights = load_file(path / "adapter_model.safetensors")
    weights["base_model.model.lm_head.weight"][0, 0] += 1
    save_file(weights, path / "adapter_model.safetensors")
    line = refusal_of(lambda: lora_at(config_of(folder), load_checkpoint(path), CPU))
    assert "with other values than the base's" in line


def test_a_checkpoint_is_named_by_its_whole_path(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkpoint / "below").mkdir()
    monkeypatch.chdir(checkpoint / "below")
    (found,) = saved_checkpoints(WarmupConfig.model_validate({"checkpoints": [".."]}))
    assert found.name == "checkpoint-4"


@pytest.mark.parametrize("name", ["loss", "rds+", "embedding", "tov", ".hidden", "two\nlines"])
def test_a_folder_that_can_not_name_a_store_is_refused(checkpoint: Path, name: str) -> None:
    folder = copied(checkpoint, checkpoint.with_name(name))
    config = WarmupConfig.model_validate({"checkpoints": [str(folder)]})
    assert "can't name a feature store" in refusal_of(lambda: saved_checkpoints(config), ConfigError)


@pytest.mark.parametrize("path", ["..", "~nobody-of-that-name/x", "\0", "", "/"])
def test_paths_that_are_no_checkpoint_are_refused(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = WarmupConfig.model_validate({"checkpoints": [path]})
    refusal_of(lambda: saved_checkpoints(config), (ConfigError, CheckpointError))  # type: ignore[arg-type]


def test_a_checkpoint_that_can_not_be_used_is_refused_before_the_pool_is_read(
    checkpoint: Path, tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(checkpoint / "adapter_config.json", use_dora=True)
    config = tiny_run(tmp_path, tiny_model_folder, warmup={"checkpoints": [str(checkpoint)]})
    assert gradsift("run", config) == 2
    assert "use_dora" in capsys.readouterr().err
    assert not (tmp_path / "run" / "pool").exists()
