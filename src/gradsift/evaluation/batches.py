"""`Batches`: runs items in batches of about the same length, as many at a time as asked for or as memory takes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from gradsift.encoding import batches_by_length
from gradsift.errors import UserError
from gradsift.evaluation.context import cache_bytes

AUTO_TOKENS = {"cpu": 8192, "cuda": 32768}
"""Tokens of a batch that is read once."""
AUTO_CACHE_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}
"""Keys and values that a batch may keep while it is generated from."""
MAX_ROWS = 64
UNLIMITED = 1 << 62

BatchSize = int | Literal["auto"]
Report = Callable[[int, int], None]
"""Told of each batch how many rows and tokens it had."""
Result = TypeVar("Result")


class Batches:
    """The batches that one model takes."""

    def __init__(self, model: nn.Module, size: BatchSize) -> None:
        device = next(model.parameters()).device.type
        self._size = size
        self.read_tokens = AUTO_TOKENS[device]
        """Tokens of a batch that is read once, where its size is left to us."""
        self.kept_tokens = AUTO_CACHE_BYTES[device] // cache_bytes(model)
        """Tokens of a batch whose keys and values are kept, likewise."""

    def run(
        self,
        items: Sequence[Any],
        lengths: Sequence[int],
        auto_tokens: int,
        function: Callable[[Sequence[Any]], list[Result]],
        sides: Sequence[Hashable] | None = None,
    ) -> list[Result]:
        """What `function` gives of each item, in their order; `auto_tokens` is one of the two budgets.

        Items of different `sides` never share a batch. A batch that memory doesn't take is halved. Raises UserError
        where it doesn't take a single item.
        """
        tokens, rows = (auto_tokens, MAX_ROWS) if self._size == "auto" else (UNLIMITED, int(self._size))
        results: dict[int, Result] = {}
        for group in _groups(sides or [0] * len(items)):
            for places in batches_by_length([lengths[position] for position in group], tokens, rows):
                positions = [group[place] for place in places]
                batch = [items[position] for position in positions]
                results |= dict(zip(positions, _halved_where_too_large(batch, function), strict=True))
        return [results[position] for position in range(len(items))]


def _groups(sides: Sequence[Hashable]) -> list[list[int]]:
    """Positions of the items of each side."""
    groups: dict[Hashable, list[int]] = {}
    for position, side in enumerate(sides):
        groups.setdefault(side, []).append(position)
    return list(groups.values())


def _halved_where_too_large(batch: Sequence[Any], run: Callable[[Sequence[Any]], list[Result]]) -> list[Result]:
    try:
        return run(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise UserError(
                "out of memory on one question: lower encoding.max_length, or load the model in another dtype"
            ) from None
    torch.cuda.empty_cache()
    middle = len(batch) // 2
    return _halved_where_too_large(batch[:middle], run) + _halved_where_too_large(batch[middle:], run)
