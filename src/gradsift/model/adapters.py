"""LoRA adapters: a fresh one, or one of the shape that a saved checkpoint describes, on a base model."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from gradsift.errors import CheckpointError, ConfigError
from gradsift.machine import free_memory
from gradsift.model.adapter_files import ADAPTER_CONFIG, read_adapter_config
from gradsift.model.checkpoints import Checkpoint, load_adapter
from gradsift.model.loading import ModelConfig, load_base_model

if TYPE_CHECKING:
    import torch
    from torch import nn

ATTENTION_PATTERN = re.compile(r"(^|\.)[^.]*att(n|ention)[^.]*(\.|$)")


class LoraConfig(BaseModel):
    """The adapter, in PEFT's terms; the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(128, ge=1)
    alpha: int = Field(512, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    target_modules: list[str] | str = "auto"
    """Names of linears; `auto`: the projections of the attention, on a Llama the paper's q, k, v and o; or, as in PEFT,
    `all-linear` or a regular expression."""


def add_lora(base: nn.Module, config: LoraConfig) -> nn.Module:
    """The base with a fresh adapter; its initial weights follow torch's global seed."""
    import peft

    targets = attention_projections(base) if config.target_modules == "auto" else config.target_modules
    _require_memory(base, config.r)
    return _wrapped(
        base,
        peft.LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=list(targets) if isinstance(targets, list) else targets,
            task_type="CAUSAL_LM",
        ),
        ConfigError,
    )


def _require_memory(base: nn.Module, rank: int) -> None:
    """Raise ConfigError where not even the adapter of the smallest linear fits into memory."""
    from torch import nn

    smallest = min((sum(m.weight.shape) for m in base.modules() if isinstance(m, nn.Linear)), default=0)
    needed, free = 4 * rank * smallest, free_memory(next(base.parameters()).device)
    if needed > free:
        raise ConfigError(
            f"lora.r: {rank} takes {needed / 1e9:.0f} GB or more for the matrices of one linear, {free / 1e9:.1f} GB "
            "are free: lower it"
        )


def attention_projections(base: nn.Module) -> list[str]:
    """Names of the linears inside attention modules, as PEFT takes them: sorted, with their parent where needed.

    Raises ConfigError where there is none.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    linears = [name for name, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    inside = [name for name in linears if ATTENTION_PATTERN.search(name.rpartition(".")[0])]
    if not inside:
        raise ConfigError(
            f"lora.target_modules: {type(base).__name__} has no attention whose linears `auto` could take: name them"
        )
    elsewhere = {name.rpartition(".")[2] for name in set(linears) - set(inside)}
    parts = (name.split(".") for name in inside)
    return sorted({".".join(part[-2:]) if part[-1] in elsewhere else part[-1] for part in parts})


def lora_at(config: ModelConfig, checkpoint: Checkpoint, device: torch.device) -> nn.Module:
    """The base with that checkpoint's adapter, as its own config describes it: the model that PEFT would load."""
    model = add_saved_lora(load_base_model(config, device), checkpoint.path).to(device)
    trained = {name: tuple(weight.shape) for name, weight in model.named_parameters() if weight.requires_grad}
    load_adapter(model, checkpoint, trained)
    return model


def add_saved_lora(base: nn.Module, folder: Path) -> nn.Module:
    """The base with an adapter of the shape that the checkpoint's adapter_config.json describes, weights unset."""
    import peft

    read_adapter_config(folder)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise CheckpointError(f"{folder / ADAPTER_CONFIG}: PEFT can't read it: {error}") from error
    config.inference_mode = False
    return _wrapped(base, config, CheckpointError, f"{folder / ADAPTER_CONFIG}: ")


def _wrapped(
    base: nn.Module, config: Any, error_class: type[CheckpointError] | type[ConfigError], place: str = ""
) -> nn.Module:
    import peft

    config.base_model_name_or_path = getattr(base, "name_or_path", None)
    try:
        with quiet_peft():
            model: nn.Module = peft.get_peft_model(base, config)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError, re.error) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        raise error_class(f"{place}the adapter doesn't fit the model: {reason}") from error
    return model


@contextlib.contextmanager
def quiet_peft() -> Iterator[None]:
    """Without what PEFT says of no concern: of a name that transformers 5.2x has changed; that the base which an
    adapter names has no config.json, being an adapter itself that was merged.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        warnings.filterwarnings("ignore", "Could not find a config file in", UserWarning)
        yield
