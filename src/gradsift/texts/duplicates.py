"""Duplicates: which texts were seen before, word for word or nearly."""

from __future__ import annotations

from typing import Literal, Protocol

from gradsift.errors import ConfigError
from gradsift.machine import fingerprint
from gradsift.texts.words import words_in

NUM_PERMUTATIONS = 128
SHINGLE_WORDS = 5

Deduplication = Literal["none", "exact", "near"]


class Duplicates(Protocol):
    """The texts kept so far."""

    def holds(self, text: str) -> bool:
        """Whether a text like this was kept before; if not, it is kept now."""
        ...


class ExactDuplicates:
    """Texts that are equal but for case and white space."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def holds(self, text: str) -> bool:
        """Whether an equal text was kept before; if not, this one is kept now."""
        key = fingerprint(" ".join(text.casefold().split()))
        if key in self._seen:
            return True
        self._seen.add(key)
        return False


class NearDuplicates:
    """Texts whose sets of 5-word runs are alike: Jaccard similarity from `threshold` on, estimated by MinHash.

    By the library datasketch: 128 permutations, its locality-sensitive index to find who to compare with. Raises
    ConfigError where the library is missing.
    """

    def __init__(self, threshold: float) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise ConfigError(
                "select.deduplicate=near needs the package datasketch: pip install 'gradsift[dedup]'"
            ) from error
        self._threshold = threshold
        self._blank = MinHash(num_perm=NUM_PERMUTATIONS, seed=1)
        # Whoever the index names is compared: it may name too many, but shouldn't miss one.
        self._index = MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS, weights=(0.1, 0.9))
        self._kept: list[MinHash] = []

    def holds(self, text: str) -> bool:
        """Whether a text this similar was kept before; if not, this one is kept now."""
        sketch = self._blank.copy()
        sketch.update_batch(_shingles(text))
        if any(sketch.jaccard(self._kept[index]) >= self._threshold for index in self._index.query(sketch)):
            return True
        self._index.insert(len(self._kept), sketch)
        self._kept.append(sketch)
        return False


def _shingles(text: str) -> list[bytes]:
    """The distinct runs of 5 words; a shorter text is one, and a text without words is as it stands."""
    found = words_in(text) or [text]
    starts = range(max(1, len(found) - SHINGLE_WORDS + 1))
    runs = dict.fromkeys(" ".join(found[start : start + SHINGLE_WORDS]) for start in starts)
    return [run.encode() for run in runs]


def new_duplicates(kind: Deduplication, threshold: float) -> Duplicates | None:
    """What finds duplicates of that kind; None where they may stay."""
    if kind == "none":
        return None
    return ExactDuplicates() if kind == "exact" else NearDuplicates(threshold)
