"""The base model and its tokenizer, by hub name or folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from gradsift.errors import ConfigError
from gradsift.machine import pick_dtype
from gradsift.model.positions import forget_lengths

if TYPE_CHECKING:
    import torch
    from torch import nn


class ModelConfig(BaseModel):
    """The base model, by hub name or folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name_or_path: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 on a CUDA card that has it, else float32."""
    quantization: Literal["nf4", "int8"] | None = None
    """Load the base through bitsandbytes (QLoRA); None: not quantised."""
    trust_remote_code: bool = False
    revision: str | None = None


def load_tokenizer(config: ModelConfig) -> Any:
    """The model's fast tokenizer."""
    from transformers import AutoTokenizer

    with model_errors(config):
        tokenizer = AutoTokenizer.from_pretrained(
            config.name_or_path, trust_remote_code=config.trust_remote_code, revision=config.revision
        )
    if not tokenizer.is_fast:
        raise ConfigError(
            f"model.name_or_path: {config.name_or_path} has no fast tokenizer, which is needed to tell which tokens "
            "are the assistant's; convert it with transformers first"
        )
    return tokenizer


def load_base_model(config: ModelConfig, device: torch.device) -> nn.Module:
    """The causal language model in its dtype, on the device, without adapter.

    transformers chooses the attention: the fastest that the model knows and that is exact in float32 (`sdpa`), else
    `eager`. Rotary embeddings that remember the longest row so far forget it before each pass.
    """
    from transformers import AutoModelForCausalLM

    arguments: dict[str, Any] = {"dtype": pick_dtype(config.dtype)}
    if config.quantization:
        arguments |= {"quantization_config": _quantization(config), "device_map": {"": device}}
    with model_errors(config):
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            _absolute(config.name_or_path),
            trust_remote_code=config.trust_remote_code,
            revision=config.revision,
            **arguments,
        )
    forget_lengths(model)
    return model if config.quantization else model.to(device)


def hidden_size(config: ModelConfig) -> int:
    """H, from the model's config alone."""
    from transformers import AutoConfig

    with model_errors(config):
        described = AutoConfig.from_pretrained(
            config.name_or_path, trust_remote_code=config.trust_remote_code, revision=config.revision
        )
    return int(described.get_text_config().hidden_size)


def _absolute(name: str) -> str:
    """The whole path of a folder: adapters remember it, and are loaded from anywhere; a hub name stays as it is."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def _quantization(config: ModelConfig) -> Any:
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ConfigError("model.quantization needs bitsandbytes: pip install bitsandbytes")
    if config.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=pick_dtype(config.dtype),
    )


@contextlib.contextmanager
def model_errors(config: ModelConfig) -> Iterator[None]:
    """Turn what transformers says of a model that can't be loaded into one line."""
    name = config.name_or_path
    if _looks_like_path(name) and not Path(name).expanduser().is_dir():
        raise ConfigError(f"model.name_or_path: there is no folder {name}")
    try:
        yield
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) is not None:  # a full disk, not a wrong name
            raise
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"model.name_or_path: {name} can't be loaded: {reason}") from error


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1
