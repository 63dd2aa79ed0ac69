"""What is known of a model before its weights: embeddings, positions, attention; and rows that are made to fit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import LENGTH_READERS, load_toy, save_toy

from gradsift.encoding.encoder import EncodingConfig
from gradsift.errors import ConfigError
from gradsift.model.description import describe_model, load_encoder
from gradsift.model.loading import ModelConfig


def described(family: str, folder: Path, **settings: Any) -> Any:
    return describe_model(ModelConfig(name_or_path=str(save_toy(family, folder, settings))))


def with_tokenizer(model: Path, tokenizer: Path) -> ModelConfig:
    """The tiny model's tokenizer beside another model."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((tokenizer / name).read_bytes())
    return ModelConfig(name_or_path=str(model))


@pytest.mark.parametrize(
    ("family", "positions"),
    [("gpt2", 64), ("opt", 64), ("roberta", 63), ("gptj", 64), ("llama", None), ("bloom", None), ("gpt_neox", None)],
)
def test_a_table_of_positions_is_as_long_as_the_longest_row_that_runs(
    family: str, positions: int | None, tmp_path: Path
) -> None:
    settings = {"rotary_dim": 4} if family == "gptj" else {}
    assert described(family, tmp_path, **settings).num_positions == positions
    model = load_toy(tmp_path)

    model(input_ids=torch.full((1, positions or 80), 7), use_cache=False)
    if positions is not None:
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, positions + 1), 7), use_cache=False)


@pytest.mark.parametrize(("family", "attention"), [("llama", "sdpa"), ("gemma2", "eager"), ("bloom", "eager")])
def test_the_attention_that_transformers_chooses_is_part_of_the_meaning(
    family: str, attention: str, tmp_path: Path
) -> None:
    assert described(family, tmp_path).meaning() == {"attention": attention}
    assert load_toy(tmp_path).config._attn_implementation == attention


@pytest.mark.parametrize("kind", LENGTH_READERS)
def test_a_model_that_looks_at_the_batch_says_so_in_the_meaning(kind: str, tmp_path: Path) -> None:
    family, settings = LENGTH_READERS[kind]

    assert described(family, tmp_path, **settings).meaning()["positions"] == "of a row alone"


def test_rows_are_cut_to_the_model_s_positions(
    tmp_path: Path, tiny_model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = with_tokenizer(save_toy("gpt2", tmp_path), tiny_model_folder)

    with caplog.at_level(logging.WARNING):
        encoder = load_encoder(config, EncodingConfig(template="tulu", max_length=256))

    assert encoder.meaning()["max_length"] == 64
    assert "has a table of 64 positions: rows are cut after 64 tokens" in caplog.text


def test_rows_of_a_model_without_a_table_stay_as_long_as_wanted(tiny_model_folder: Path) -> None:
    config = ModelConfig(name_or_path=str(tiny_model_folder))

    assert load_encoder(config, EncodingConfig(template="tulu", max_length=2048)).max_length == 2048


def test_an_id_that_the_model_has_no_embedding_of_is_refused_with_both_sizes(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    config = with_tokenizer(save_toy("llama", tmp_path, {"vocab_size": 290}), tiny_model_folder)
    encoder = load_encoder(config, EncodingConfig(template="tulu"))
    encoder.tokenized(["abc"])

    with pytest.raises(ConfigError, match="the tokenizer has 300 tokens and the model embeddings of 290: the rows"):
        encoder.tokenized(["abc", "Once upon a time there was a little girl named Lily. What is the capital?"])


def test_an_encoder_decoder_is_refused_in_one_line(tmp_path: Path) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model("t5").save_pretrained(tmp_path)

    with pytest.raises(ConfigError, match=r"can't be loaded: Unrecognized configuration class .*T5Config"):
        describe_model(ModelConfig(name_or_path=str(tmp_path)))
