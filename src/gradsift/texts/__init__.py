"""Texts compared: their words, near duplicates, and runs of words that give a target's items away."""

from __future__ import annotations

from gradsift.texts.duplicates import Deduplication, new_duplicates
from gradsift.texts.overlap import ItemNgrams
from gradsift.texts.words import words_in

__all__ = [
    "Deduplication",
    "ItemNgrams",
    "new_duplicates",
    "words_in",
]
