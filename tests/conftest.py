"""What the tests share: real data where it lies beside the repository, and a model small enough to do without."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test needs the network

SENTENCES = [
    "Once upon a time there was a little girl named Lily. She liked to play outside in the park.",
    "What is the capital of France? The capital of France is Paris.",
    "Write a short answer to the question and explain it step by step.",
    "One day the user asked the assistant a question, and the assistant gave an answer.",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-examples", type=int, default=None, help="cases of each fuzz test")


def pytest_configure(config: pytest.Config) -> None:
    import fuzzing
    from hypothesis import settings

    settings.load_profile("gradsift")
    fuzzing.examples = config.getoption("--fuzz-examples")


MakeRow = Callable[..., Any]
MakeModel = Callable[..., Any]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models, data and expected numbers."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("../shared is absent")
    return folder


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama and a byte-level BPE tokenizer without a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = _trained_tokenizer()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _trained_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<s>", "</s>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture
def tiny_encoder(tiny_model_folder: Path) -> Any:
    """The tiny model's encoder in the Tulu format, as long as the model's context."""
    from gradsift.encoding.encoder import Encoder, EncodingConfig
    from gradsift.model.loading import ModelConfig, load_tokenizer

    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(tiny_model_folder)))
    return Encoder(tokenizer, EncodingConfig(template="tulu", max_length=512))


@pytest.fixture
def make_lora_model(tiny_model_folder: Path) -> MakeModel:
    """Makes the tiny model with a LoRA adapter whose matrices are all random (B too, which PEFT sets to zero)."""
    import torch

    from gradsift.model.adapters import LoraConfig, add_lora
    from gradsift.model.loading import ModelConfig, load_base_model

    config = ModelConfig(name_or_path=str(tiny_model_folder), dtype="float32")

    def make(seed: int = 0, **lora: Any) -> Any:
        settings = {"r": 4, "alpha": 8, "dropout": 0.0, **lora}
        model = add_lora(load_base_model(config, torch.device("cpu")), LoraConfig(**settings))
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                values = torch.randn(parameter.shape, generator=generator) * 0.2
                parameter.data.copy_(values)
        return model

    return make


@pytest.fixture
def make_row() -> MakeRow:
    """Makes an encoded row of random ids; the positions given are supervised, by default the last half."""
    from gradsift.encoding.encoder import EncodedRow
    from gradsift.encoding.masks import IGNORED

    def make(num_tokens: int, seed: int = 0, supervised: Sequence[int] | None = None) -> EncodedRow:
        input_ids = np.random.default_rng(seed).integers(3, 280, num_tokens, dtype=np.int32)
        positions = range(num_tokens // 2, num_tokens) if supervised is None else supervised
        labels = np.full(num_tokens, IGNORED, dtype=np.int32)
        labels[list(positions)] = input_ids[list(positions)]
        return EncodedRow(f"row-{seed}", "pool", seed, None, input_ids, labels)

    return make
