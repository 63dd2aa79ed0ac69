"""`BASELINES`: what LESS is compared with, by name, and every name that `select.method` may have."""

from __future__ import annotations

from collections.abc import Callable

from gradsift.baselines.bm25 import bm25
from gradsift.baselines.controls import full, length, random
from gradsift.baselines.dsir import dsir
from gradsift.baselines.embedding import EMBEDDING
from gradsift.baselines.representations import REPRESENTATIONS
from gradsift.baselines.texts import Scores, Texts
from gradsift.baselines.tov import TOV

BASELINES: dict[str, Callable[[Texts], Scores]] = {
    "random": random,
    "bm25": bm25,
    "dsir": dsir,
    "length": length,
    "full": full,
}


def methods() -> tuple[str, ...]:
    """Every name that `select.method` may have."""
    return ("less", *BASELINES, *REPRESENTATIONS, EMBEDDING, TOV)


def own_strategy(method: str) -> str:
    """The name in STRATEGIES by which a baseline selects where the user names none.

    Raises ValueError for `less`: its own is `select.less_strategy`.
    """
    if method == "less":
        raise ValueError("less is no baseline: its own strategy is select.less_strategy")
    return REPRESENTATIONS[method].strategy if method in REPRESENTATIONS else "top"
