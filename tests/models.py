"""Tiny random models of other families than Llama, each with a tokenizer and vocabulary of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class ModelKind:
    """What a family is tested for."""

    vocabulary: int
    attention: frozenset[str]
    """Names of the linears in its attention."""


MODEL_KINDS = {
    "qwen2": ModelKind(270, frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})),
    "gpt_neox": ModelKind(280, frozenset({"query_key_value", "dense"})),
}


def save_model(kind: str, folder: Path) -> Path:
    """A random model of that family, and its tokenizer, in `folder`."""
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    vocabulary = MODEL_KINDS[kind].vocabulary
    sizes: dict[str, Any] = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "eos_token_id": 0,
        "bos_token_id": 0,
    }
    if kind == "qwen2":
        sizes["num_key_value_heads"] = 1
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=_tokenizer(vocabulary), eos_token="<|end|>").save_pretrained(folder)
    return folder


def _tokenizer(vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(["What is this? It is one and two, and three is more than that."] * 3, trainer)
    return backend
