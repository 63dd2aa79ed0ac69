"""What the rows of a feature store mean: what they are made with, projection, model, encoding, data and dtype."""

from __future__ import annotations

from typing import Any

from gradsift.baselines import REPRESENTATIONS, TOV
from gradsift.encoding import Corpus
from gradsift.features.origins import Origin, TunedOrigin
from gradsift.features.settings import FeaturesConfig
from gradsift.gradients import PROJECTION_VERSION, ProjectionConfig
from gradsift.model import Checkpoint, ModelConfig, adapter_shapes, hidden_size


def origin_meaning(origin: Origin, config: FeaturesConfig, model: ModelConfig) -> dict[str, Any]:
    """What the features of pool and targets have in common that are made with this origin."""
    if isinstance(origin, Checkpoint):
        return _gradients_meaning(origin, config.projection)
    if isinstance(origin, TunedOrigin):
        return {"representation": TOV, "tuned": origin.fingerprint(), "projection": unprojected(1)}
    kind = REPRESENTATIONS[origin.name]
    return {"representation": origin.name, "projection": unprojected(kind.dim or hidden_size(model))}


def rows_meaning(origin: Origin, config: FeaturesConfig, corpus: Corpus, is_pool: bool) -> dict[str, Any]:
    """What is the pool's own, or a target's: encoding, data, dtype, and of gradients the form of Γ."""
    facts = {
        **corpus.manifest["encoding"],
        "dtype": _dtype(origin, config, is_pool),
        "data": corpus.manifest["fingerprint"],
    }
    if isinstance(origin, Checkpoint):
        facts["gradient"] = config.adam if is_pool else "sgd"
    return facts


def unprojected(dim: int) -> dict[str, Any]:
    """What stands in a meaning where K numbers are stored as they are made."""
    return {"kind": "none", "dim": dim}


def _gradients_meaning(checkpoint: Checkpoint, config: ProjectionConfig) -> dict[str, Any]:
    shapes = adapter_shapes(checkpoint)
    projection = config.model_dump() | {"version": PROJECTION_VERSION}
    if config.kind == "identity":
        projection |= {"dim": sum(rows * columns for rows, columns in shapes.values()), "seed": 0}
    return {
        **({} if checkpoint.is_dated else {"adapter": checkpoint.adapter}),
        "checkpoint": checkpoint.fingerprint(),
        "parameters": {name: list(shape) for name, shape in shapes.items()},
        "projection": projection,
    }


def _dtype(origin: Origin, config: FeaturesConfig, is_pool: bool) -> str:
    is_loss = isinstance(origin, TunedOrigin)
    if is_loss or (origin.name in REPRESENTATIONS and REPRESENTATIONS[origin.name].is_score):
        return "float32"  # in fewer bits rows would be equal that are not
    return config.dtype_of(is_pool, is_representation=not isinstance(origin, Checkpoint))
