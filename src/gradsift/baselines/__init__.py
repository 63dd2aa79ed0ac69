"""What LESS is compared with: methods of texts alone, and of the base model."""

from __future__ import annotations

from gradsift.baselines.embedding import EMBEDDING, EmbeddingConfig, embeddings, load_embedder
from gradsift.baselines.methods import BASELINES, methods, own_strategy
from gradsift.baselines.representations import REPRESENTATIONS, Base, Representation
from gradsift.baselines.texts import Scores, Texts
from gradsift.baselines.tov import TOV, Drop, loss_drop

__all__ = [
    "BASELINES",
    "EMBEDDING",
    "REPRESENTATIONS",
    "TOV",
    "Base",
    "Drop",
    "EmbeddingConfig",
    "Representation",
    "Scores",
    "Texts",
    "embeddings",
    "load_embedder",
    "loss_drop",
    "methods",
    "own_strategy",
]
