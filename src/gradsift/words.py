"""Words of a text in every script, also those without spaces."""

from __future__ import annotations

import regex

WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]+")
"""Scripts that put no space between words: cut into pairs of characters."""


def words(text: str) -> list[str]:
    """Case-folded words; a run of an unspaced script gives its overlapping pairs of characters, marks kept."""
    found = []
    for word in WORD.findall(text.casefold()):
        start = 0
        for run in UNSPACED.finditer(word):
            found += [word[start : run.start()], *_pairs(run.group())]
            start = run.end()
        found.append(word[start:])
    return [word for word in found if word]


def _pairs(run: str) -> list[str]:
    return [run[index : index + 2] for index in range(max(1, len(run) - 1))]
