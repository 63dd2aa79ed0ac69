"""What the rows of a store mean, field by field, and in which fields two stores must agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradsift.errors import StoreMismatch

JOINED_FIELDS = (
    "embedder",
    "checkpoint",
    "base_model",
    "attention",
    "positions",
    "tokenizer",
    "template",
    "max_length",
    "supervise",
    "parameters",
    "projection",
)
"""Fields of the meaning that a pool's and a target's store must share, besides their kind; a store of a representation
lacks some. What they don't: data, gradient, dtypes."""


BEFORE = {"attention": "sdpa"}
"""What stores mean that were made before a field was."""


def flattened(meaning: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in meaning.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def require_same_meaning(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Raise StoreMismatch naming the first field in which the store in `folder` isn't the one wanted."""
    left, right = BEFORE | flattened(found), BEFORE | flattened(wanted)
    for field in sorted(left.keys() | right.keys()):
        if left.get(field) != right.get(field):
            made = f"{folder} was made with other settings than this run's, or before these were noted"
            where = f"{made}; set them back, or delete it to make it again"
            raise StoreMismatch(field, left.get(field), right.get(field), where)
