"""What LESS is compared with: `BASELINES` score the pool from texts and a seed alone, `REPRESENTATIONS` are made by the
base model and matched with a target as gradients are."""

from __future__ import annotations

from collections.abc import Callable

from gradsift.baselines.bm25 import bm25
from gradsift.baselines.controls import full, length, random
from gradsift.baselines.dsir import dsir
from gradsift.baselines.representations import REPRESENTATIONS, Base, Representation
from gradsift.baselines.texts import Scores, Texts

__all__ = ["BASELINES", "REPRESENTATIONS", "Base", "Representation", "Scores", "Texts", "methods", "own_strategy"]

BASELINES: dict[str, Callable[[Texts], Scores]] = {
    "random": random,
    "bm25": bm25,
    "dsir": dsir,
    "length": length,
    "full": full,
}


def methods() -> tuple[str, ...]:
    """Every name that `select.method` may have."""
    return ("less", *BASELINES, *REPRESENTATIONS)


def own_strategy(method: str) -> str:
    """The name in STRATEGIES by which a method selects where the user names none."""
    return REPRESENTATIONS[method].strategy if method in REPRESENTATIONS else "top"
