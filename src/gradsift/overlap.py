"""Overlap: the runs of words that give a target's items away, and which texts hold one of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from gradsift.words import words

MAX_SHARE = 0.01
"""A run that more than this share of the items hold (and more than one item) is how the target words its items, an
instruction say, and gives none of them away."""


class ItemNgrams:
    """The runs of `size` words in a target's items; an item of fewer words is a run as a whole."""

    def __init__(self, items: Iterable[str], size: int) -> None:
        self._size = size
        self._runs = _telling_runs({tuple(words(item)) for item in items} - {()}, size)
        self._short_lengths: dict[str, set[int]] = defaultdict(set)
        for run in self._runs:
            if run.count(" ") + 1 < size:
                self._short_lengths[run.partition(" ")[0]].add(run.count(" ") + 1)

    def __len__(self) -> int:
        """Runs."""
        return len(self._runs)

    def stand_in(self, text: str) -> bool:
        """Whether the text holds one of the runs; time is linear in its words."""
        found = words(text)
        return any(run in self._runs for run in _runs(found, self._size)) or any(
            run in self._runs for run in self._short_runs(found)
        )

    def _short_runs(self, found: list[str]) -> Iterator[str]:
        """The runs that are as long as a short item of the same first word."""
        for start, word in enumerate(found) if self._short_lengths else ():
            for length in self._short_lengths.get(word, ()):
                yield " ".join(found[start : start + length])


def _telling_runs(items: set[tuple[str, ...]], size: int) -> set[str]:
    num_items = Counter(run for item in items for run in set(_runs(item, min(size, len(item)))))
    most = max(1, int(MAX_SHARE * len(items)))
    return {run for run, count in num_items.items() if count <= most}


def _runs(found: Sequence[str], size: int) -> Iterator[str]:
    return (" ".join(found[start : start + size]) for start in range(len(found) - size + 1))
