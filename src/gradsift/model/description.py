"""`ModelDescription`: what is known of a model before its weights are loaded; and the encoder that keeps to it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradsift.encoding import Encoder, EncodingConfig
from gradsift.model.loading import ModelConfig, empty_model, load_tokenizer
from gradsift.model.positions import looks_at_the_batch

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

POSITION_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_target_positions")
MOST_RESERVED = 4
"""Rows of a table of positions that no token has, at most: OPT's first two, RoBERTa's padding."""


@dataclass(frozen=True)
class ModelDescription:
    """What decides whether rows fit a model, and what its numbers are made with."""

    num_embeddings: int
    """Ids that it has an embedding of."""
    num_positions: int | None
    """Rows of its table of positions; None: it has none, and takes rows of any length."""
    attention: str
    """The implementation that transformers chooses for it: `sdpa`, or `eager` where the model knows no other."""
    looks_at_the_batch: bool
    """Whether its rotary embedding depends on the longest row of a batch (`positions`)."""

    def meaning(self) -> dict[str, Any]:
        """What a store's rows are made with, besides the weights."""
        positions = {"positions": "of a row alone"} if self.looks_at_the_batch else {}
        return {"attention": self.attention, **positions}


def describe_model(config: ModelConfig) -> ModelDescription:
    """The model's description, from its config alone: the modules are made without weights."""
    model = empty_model(config)
    return ModelDescription(
        num_embeddings=num_embeddings(model),
        num_positions=num_positions(model),
        attention=str(model.config._attn_implementation),  # type: ignore[union-attr]
        looks_at_the_batch=looks_at_the_batch(model.config),
    )


def load_encoder(model: ModelConfig, encoding: EncodingConfig) -> Encoder:
    """The encoder with the model's tokenizer: ids that it has no embedding of are refused, rows cut to its positions.

    Learned positions are meant: a rotary embedding takes rows of any length.
    """
    tokenizer, described = load_tokenizer(model), describe_model(model)
    most = described.num_positions
    if most is not None and most < encoding.max_length:
        logger.warning(
            "encoding.max_length is %d, but %s has a table of %d positions: rows are cut after %d tokens",
            encoding.max_length,
            model.name_or_path,
            most,
            most,
        )
        encoding = encoding.model_copy(update={"max_length": most})
    return Encoder(tokenizer, encoding, described.num_embeddings)


def num_embeddings(model: nn.Module) -> int:
    """Ids that the model has an embedding of."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    return int(getattr(embedding, "num_embeddings", embedding.weight.shape[0]))


def num_positions(model: nn.Module) -> int | None:
    """Tokens that a row may have where the model looks its positions up in a table; None where it doesn't."""
    text = model.config.get_text_config()  # type: ignore[operator, union-attr]
    named = {int(getattr(text, name)) for name in POSITION_NAMES if isinstance(getattr(text, name, None), int)}
    tables = _position_tables(model)
    sizes = [size - unused for size, unused in tables if any(0 <= size - most <= MOST_RESERVED for most in named)]
    return min(sizes, default=None)


def _position_tables(model: nn.Module) -> Iterator[tuple[int, int]]:
    """Rows of everything that looks like a table of positions, and how many of them no token has."""
    from torch import Tensor, nn

    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and _means_positions(name):
            padded = 0 if module.padding_idx is None else module.padding_idx + 1
            yield module.num_embeddings, int(getattr(module, "offset", padded))
        for key in ("embed_positions", "pos_encoding"):
            table = getattr(module, key, None)
            if isinstance(table, Tensor):
                yield table.shape[0], 0


def _means_positions(name: str) -> bool:
    return name == "wpe" or ("pos" in name and "bias" not in name and "relative" not in name)
