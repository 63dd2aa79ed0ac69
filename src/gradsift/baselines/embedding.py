"""Embeddings of texts by any model of sentence-transformers, which is imported only here, when it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gradsift.errors import ConfigError

EMBEDDING = "embedding"
"""The method's name."""


class EmbeddingConfig(BaseModel):
    """Which model embeds the texts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """By hub name or folder. It cuts texts off at its own length."""
    batch_size: int = Field(32, ge=1)
    """Texts that go through it at once."""


def load_embedder(config: EmbeddingConfig, device: torch.device) -> Any:
    """The model; raises ConfigError in one line where it, or sentence-transformers, is not there."""
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the method embedding needs sentence-transformers: pip install gradsift[embedding]"
        ) from error
    try:
        return SentenceTransformer(config.model, device=str(device))
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) is not None:  # a full disk, not a wrong name
            raise
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"baselines.embedding.model: {config.model} can't be loaded: {reason}") from error


def embeddings(embedder: Any, texts: Sequence[str], batch_size: int) -> Tensor:
    """Float32 [R, K] of R texts, as the model gives them: not normalised unless it does that itself."""
    found: Tensor = embedder.encode(list(texts), batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)
    return found.float()
