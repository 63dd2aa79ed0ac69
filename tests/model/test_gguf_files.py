"""A base model in a GGUF file: weights, tokenizer, identity, training on it; files that won't do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_models import TEMPLATE, in_eight_bits, write_gguf
from runs import gradsift, tiny_run

from gradsift.config import load_config
from gradsift.errors import ConfigError
from gradsift.model import (
    LoraConfig,
    ModelConfig,
    add_lora,
    describe_model,
    hidden_size,
    load_base_model,
    load_tokenizer,
    model_fingerprint,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def gguf_folder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as `tiny.gguf` and, in eight bits, `small.gguf`, alone in a folder."""
    folder = tmp_path_factory.mktemp("gguf")
    write_gguf(tiny_model_folder, folder / "tiny.gguf")
    write_gguf(tiny_model_folder, folder / "small.gguf", bits=8)
    return folder


def config_of(folder: Path, file: str | None = "tiny.gguf", **more: Any) -> ModelConfig:
    return ModelConfig(name_or_path=str(folder), gguf_file=file, dtype="float32", **more)


def weights_of(config: ModelConfig) -> dict[str, torch.Tensor]:
    return load_base_model(config, CPU).state_dict()


def test_the_weights_are_those_of_the_model_that_was_written(tiny_model_folder: Path, gguf_folder: Path) -> None:
    expected, found = weights_of(config_of(tiny_model_folder, None)), weights_of(config_of(gguf_folder))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_quantised_weights_are_unpacked(tiny_model_folder: Path, gguf_folder: Path) -> None:
    expected, found = weights_of(config_of(tiny_model_folder, None)), weights_of(config_of(gguf_folder, "small.gguf"))
    for name in ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"):
        assert torch.equal(found[name], torch.from_numpy(in_eight_bits(expected[name].numpy())))
        assert found[name].dtype == torch.float32


def test_the_model_is_an_ordinary_one_afterwards(gguf_folder: Path, tmp_path: Path) -> None:
    model = load_base_model(config_of(gguf_folder, "small.gguf"), CPU)
    assert all(type(module) is torch.nn.Linear for name, module in model.named_modules() if name.endswith("_proj"))
    assert getattr(model.config, "quantization_config", None) is None
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    adapted = add_lora(load_base_model(config_of(gguf_folder), CPU), LoraConfig(r=2))
    assert adapted.peft_config["default"].base_model_name_or_path == str(gguf_folder)


def test_config_and_description_come_from_the_header(tiny_model_folder: Path, gguf_folder: Path) -> None:
    assert describe_model(config_of(gguf_folder)) == describe_model(config_of(tiny_model_folder, None))
    assert hidden_size(config_of(gguf_folder)) == 32


def test_the_tokenizer_is_fast_and_has_the_template(tiny_model_folder: Path, gguf_folder: Path) -> None:
    tokenizer, expected = load_tokenizer(config_of(gguf_folder)), load_tokenizer(config_of(tiny_model_folder, None))
    text = "What is the capital of France?</s> Ünïcode, 12 + 3."
    wanted = expected(text, add_special_tokens=False).input_ids
    assert tokenizer.is_fast
    assert tokenizer(text, add_special_tokens=False).input_ids == wanted
    assert tokenizer.chat_template == TEMPLATE
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("</s>", "<pad>")


def test_a_header_is_read_anew_where_the_file_has_changed(gguf_folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(gguf_folder / "tiny.gguf", tmp_path / "tiny.gguf"))
    first = load_tokenizer(config_of(tmp_path))
    first.chat_template = "changed by who was given it"
    assert load_tokenizer(config_of(tmp_path)).chat_template == TEMPLATE
    path.write_bytes(path.read_bytes().replace(b"<s>assistant", b"<s>assistent"))
    assert load_tokenizer(config_of(tmp_path)).chat_template == TEMPLATE.replace("assistant", "assistent")


def test_a_file_of_that_name_in_the_current_folder_is_not_read(
    gguf_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = weights_of(config_of(gguf_folder))
    shutil.copy(gguf_folder / "small.gguf", tmp_path / "tiny.gguf")
    monkeypatch.chdir(tmp_path)
    found = weights_of(config_of(gguf_folder))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_fingerprint_is_of_the_file(gguf_folder: Path, tmp_path: Path) -> None:
    before = model_fingerprint(config_of(gguf_folder))
    moved = shutil.copy(gguf_folder / "tiny.gguf", tmp_path / "moved.gguf")
    config = config_of(tmp_path, "moved.gguf")
    assert model_fingerprint(config) == before
    assert model_fingerprint(config_of(gguf_folder, "small.gguf")) != before
    content = moved.read_bytes()
    for position in (content.index(b"general.name") + 30, len(content) - 5):  # header, weights
        moved.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        assert model_fingerprint(config) != before


RANDOM = {"select": {"method": "random", "fraction": 0.25}}


def test_a_run_trains_an_adapter_that_names_the_folder(gguf_folder: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, gguf_folder, encoding={"template": "auto", "max_length": 128})
    assert gradsift("run", config, "model.gguf_file=tiny.gguf") == 0
    model = tmp_path / "run" / "model" / "sums" / "less"
    assert json.loads((model / "adapter_config.json").read_text())["base_model_name_or_path"] == str(gguf_folder)
    adapter = config_of(model)
    assert load_tokenizer(adapter).chat_template == TEMPLATE
    merged, base = weights_of(adapter), weights_of(config_of(gguf_folder))
    assert merged.keys() == base.keys()
    changed = {name.rpartition(".self_attn.")[2] for name in base if not torch.equal(merged[name], base[name])}
    assert changed == {"q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight"}


def test_a_model_trained_in_full_is_an_ordinary_one(gguf_folder: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, gguf_folder, train={"method": "full"}, **RANDOM)
    assert gradsift("run", config, "model.gguf_file=tiny.gguf") == 0
    model = tmp_path / "run" / "model" / "sums" / "random"
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {path.name for path in model.iterdir()}
    weights = weights_of(config_of(model, None))
    assert not torch.equal(weights["lm_head.weight"], weights_of(config_of(gguf_folder))["lm_head.weight"])


def test_another_file_in_its_place_is_refused(
    gguf_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(gguf_folder, tmp_path / "model"))
    config = tiny_run(tmp_path, folder, **RANDOM)
    assert gradsift("encode", config, "model.gguf_file=tiny.gguf") == 0
    shutil.copy(folder / "small.gguf", folder / "tiny.gguf")
    assert gradsift("encode", config, "model.gguf_file=tiny.gguf") == 2
    assert "weights or config have changed" in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_made_before_the_key_stays_accepted(tiny_model_folder: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, tiny_model_folder, **RANDOM)
    assert gradsift("run", config) == 0
    manifest = tmp_path / "run" / "model" / "sums" / "random" / "manifest.json"
    kept = tmp_path / "run" / "config.yaml"
    kept.write_text("".join(line for line in kept.read_text().splitlines(True) if "gguf_file" not in line))
    facts = json.loads(manifest.read_text())
    assert facts["model"].pop("gguf_file", "absent") is None
    facts.pop("checksum", None)
    manifest.write_text(json.dumps(facts))
    before = manifest.read_bytes()
    assert gradsift("run", config) == 0
    assert manifest.read_bytes() == before


def error_of(config: ModelConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        describe_model(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_that_is_not_there_is_named_with_those_that_are(gguf_folder: Path, tmp_path: Path) -> None:
    assert "no file absent.gguf" in error_of(config_of(gguf_folder, "absent.gguf"))
    assert error_of(config_of(gguf_folder, "absent.gguf")).endswith("GGUF files there: small.gguf, tiny.gguf")
    assert error_of(config_of(tmp_path)).endswith("GGUF files there: none")


def test_a_gguf_in_the_place_of_a_folder_is_pointed_out(gguf_folder: Path) -> None:
    assert "and the file in model.gguf_file" in error_of(config_of(gguf_folder / "tiny.gguf", None))
    assert error_of(config_of(gguf_folder, None)).endswith("holds small.gguf: name it in model.gguf_file")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"PK\x03\x04 and more")
    assert "is no GGUF file" in error_of(config_of(tmp_path))


@pytest.mark.parametrize("kept", [0.0001, 0.01, 0.3])
def test_a_header_that_breaks_off_is_refused(gguf_folder: Path, tmp_path: Path, kept: float) -> None:
    content = (gguf_folder / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(content[: max(4, int(kept * len(content)))])
    assert error_of(config_of(tmp_path)).startswith(f"model.gguf_file: tiny.gguf in {tmp_path} can't be loaded: ")


def test_weights_that_break_off_are_refused(gguf_folder: Path, tmp_path: Path) -> None:
    content = (gguf_folder / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(content[:-1000])
    with pytest.raises(ConfigError, match=r"model\.gguf_file: tiny\.gguf in .* can't be loaded"):
        load_base_model(config_of(tmp_path), CPU)


def test_an_architecture_that_transformers_cannot_read_is_named(tiny_model_folder: Path, tmp_path: Path) -> None:
    write_gguf(tiny_model_folder, tmp_path / "tiny.gguf", architecture="rwkv7")
    assert "architecture rwkv7" in error_of(config_of(tmp_path))


def test_the_package_that_is_missing_is_named_with_the_extra(
    gguf_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradsift.model.gguf_files.find_spec", lambda name: None)
    assert error_of(config_of(gguf_folder)).endswith("pip install 'gradsift[gguf]'")


def test_quantization_besides_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    with pytest.raises(ConfigError, match=r"model: a GGUF's weights are unpacked: leave gguf_file or quantization out"):
        load_config(config, ["model.gguf_file=tiny.gguf", "model.quantization=nf4"])
