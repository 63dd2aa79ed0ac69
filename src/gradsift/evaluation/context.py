"""How long a prompt and its answer may be, and what its keys and values take of memory."""

from __future__ import annotations

from typing import Any

from torch import nn

from gradsift.encoding import Encoder


def context_length(model: nn.Module, encoder: Encoder) -> int:
    """Tokens that a prompt and its answer may have: encoding.max_length, or the model's positions where fewer."""
    positions = getattr(_text_config(model), "max_position_embeddings", None)
    return encoder.max_length if positions is None else min(encoder.max_length, int(positions))


def _text_config(model: nn.Module) -> Any:
    return model.config.get_text_config()  # type: ignore[operator, union-attr]


def cache_bytes(model: nn.Module) -> int:
    """Bytes that the keys and values of one token take; a guess on the large side where an architecture keeps less."""
    config = _text_config(model)
    num_heads = getattr(config, "num_attention_heads", None) or 1
    num_kept = getattr(config, "num_key_value_heads", None) or num_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    value_bytes = max(next(model.parameters()).dtype.itemsize, 2)  # quantised weights don't make quantised keys
    return int(2 * config.num_hidden_layers * num_kept * width * value_bytes)
