"""Overlap: the runs of words that give a target's items away, and which texts hold one of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from gradsift.texts.words import words_in

MAX_SHARE = 0.01
"""A run that more than this share of the items hold (and more than one item) is how the target words its items, an
instruction say, and gives none of them away."""


class ItemNgrams:
    """The runs of `size` words in a target's items; an item of fewer words is a run as a whole."""

    def __init__(self, items: Iterable[str], size: int) -> None:
        self._size = size
        self._runs = _telling_runs({tuple(words_in(item)) for item in items} - {()}, size)
        self._short_lengths: dict[str, set[int]] = defaultdict(set)
        for run in self._runs:
            if len(run) < size:
                self._short_lengths[run[0]].add(len(run))

    def __len__(self) -> int:
        """Runs."""
        return len(self._runs)

    def stand_in(self, found: Sequence[str]) -> bool:
        """Whether the text of these words holds one of the runs; time is linear in its words."""
        disjoint = self._runs.isdisjoint  # a loop of the interpreter's own
        return not (disjoint(_runs(found, self._size)) and disjoint(self._short_runs(found)))

    def _short_runs(self, found: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """The runs that are as long as a short item of the same first word."""
        lengths = self._short_lengths
        for start in [start for start, word in enumerate(found) if word in lengths] if lengths else ():
            for length in lengths[found[start]]:
                yield tuple(found[start : start + length])


def _telling_runs(items: set[tuple[str, ...]], size: int) -> set[tuple[str, ...]]:
    num_items = Counter(run for item in items for run in set(_runs(item, min(size, len(item)))))
    most = max(1, int(MAX_SHARE * len(items)))
    return {run for run, count in num_items.items() if count <= most}


def _runs(found: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    return zip(*(found[offset:] for offset in range(size)), strict=False)
