"""`BASELINES`: what LESS is compared with; each scores the pool's rows for a target from texts and a seed alone."""

from __future__ import annotations

from collections.abc import Callable

from gradsift.baselines.bm25 import bm25
from gradsift.baselines.controls import full, length, random
from gradsift.baselines.dsir import dsir
from gradsift.baselines.texts import Scores, Texts

__all__ = ["BASELINES", "Scores", "Texts"]

BASELINES: dict[str, Callable[[Texts], Scores]] = {
    "random": random,
    "bm25": bm25,
    "dsir": dsir,
    "length": length,
    "full": full,
}
