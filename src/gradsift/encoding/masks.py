"""Masks: which tokens of a rendered conversation are supervised, and which are left where it is too long."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IGNORED = -100
"""Label of a token that is not supervised, as in transformers."""

Span = tuple[int, int]
"""Characters [start, end) of a rendered conversation."""

NOWHERE: Span = (-1, -1)
"""The characters of a special token that the tokenizer adds: it stands for no text."""


def answer_window(answer: Span, leading: int, room: int) -> Span:
    """The tokens [first, last) of a row that is too long, which fill `room` together with its leading special tokens.

    The answer's, without its end where it is too long itself, and of those before it the nearest, one at least.
    """
    start, end = answer
    last = min(end, start + room - leading - 1)
    return max(last - (room - leading), leading), last


def num_leading(offsets: Sequence[Span]) -> int:
    """Special tokens that begin a row: they stay when its beginning is cut."""
    return next((index for index, span in enumerate(offsets) if span != NOWHERE), len(offsets))


def supervised_tokens(offsets: Sequence[Span], spans: Sequence[Span]) -> npt.NDArray[np.bool_]:
    """Which tokens hold a character of a span: bool [T]. One of no character counts where it stands."""
    starts, ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T
    supervised = np.zeros(len(starts), dtype=np.bool_)
    for start, end in spans:
        supervised |= (np.maximum(ends, starts + 1) > start) & (starts < end)
    return supervised & (starts >= 0)
