"""Batches: rows padded on the right, grouped by length up to a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradsift.encoding.encoder import EncodedRow
from gradsift.encoding.masks import IGNORED


@dataclass(frozen=True)
class Batch:
    """Right-padded rows, all int64 [B, T]; labels are IGNORED where a token is not supervised."""

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    labels_BT: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on the device."""
        return Batch(self.input_ids_BT.to(device), self.attention_mask_BT.to(device), self.labels_BT.to(device))

    def part(self, positions: list[int], length: int) -> Batch:
        """Those rows, cut after `length` tokens."""
        return Batch(
            self.input_ids_BT[positions, :length],
            self.attention_mask_BT[positions, :length],
            self.labels_BT[positions, :length],
        )


def pad_rows(rows: Sequence[EncodedRow]) -> Batch:
    """The rows as one batch, as long as the longest of them. Padded ids are 0: nothing looks at them."""
    shape = len(rows), max(row.num_tokens for row in rows)
    input_ids_BT = torch.zeros(shape, dtype=torch.int64)
    attention_mask_BT = torch.zeros(shape, dtype=torch.int64)
    labels_BT = torch.full(shape, IGNORED, dtype=torch.int64)
    for index, row in enumerate(rows):
        input_ids_BT[index, : row.num_tokens] = torch.as_tensor(row.input_ids, dtype=torch.int64)
        attention_mask_BT[index, : row.num_tokens] = 1
        labels_BT[index, : row.num_tokens] = torch.as_tensor(row.labels, dtype=torch.int64)
    return Batch(input_ids_BT, attention_mask_BT, labels_BT)


MAX_BATCH_ROWS = 64
FIRST_TOKENS = 4096
ROOMY_SHARE = 0.4


def by_length(lengths: Sequence[int]) -> list[int]:
    """Positions of the rows, longest first; of one length, in their order."""
    return sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))


def num_fitting(lengths: Sequence[int], tokens: int, max_rows: int = MAX_BATCH_ROWS) -> int:
    """How many of the first rows, longest first, make a batch: at most `tokens` once padded, and never none."""
    return max(1, min(len(lengths), tokens // lengths[0], max_rows))


def batches_by_length(lengths: Sequence[int], tokens: int, max_rows: int = MAX_BATCH_ROWS) -> list[list[int]]:
    """Positions of the rows, longest first, in batches of a padded size of at most `tokens`.

    A row longer than the budget gets a batch of its own; no batch has more than `max_rows` rows.
    """
    waiting, batches = by_length(lengths), []
    while waiting:
        count = num_fitting([lengths[position] for position in waiting], tokens, max_rows)
        batches.append(waiting[:count])
        waiting = waiting[count:]
    return batches


def groups_of_like_length(lengths: Sequence[int]) -> list[list[int]]:
    """Positions of the rows, longest first, in groups in which every row is at least three quarters of the longest."""
    groups: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda position: (-lengths[position], position)):
        if groups and 4 * lengths[position] >= 3 * lengths[groups[-1][0]]:
            groups[-1].append(position)
        else:
            groups.append([position])
    return groups


class TokenBudget:
    """Padded tokens that go through the model at once; `auto` grows while a card has room, and shrinks where it lacks.

    It changes speed and memory, never a feature. On a CPU larger batches are no faster, and `auto` stays as it is.
    """

    def __init__(self, wanted: int | str, device_type: str) -> None:
        self.tokens = FIRST_TOKENS if wanted == "auto" else int(wanted)
        self._grows = wanted == "auto" and device_type == "cuda"

    def succeeded(self, tokens: int, peak_share: float | None) -> None:
        """A batch of that many tokens went through, using that share of the memory at most so far."""
        if self._grows and tokens > self.tokens // 2:
            self._grows = peak_share is not None and peak_share < ROOMY_SHARE
            self.tokens *= 2 if self._grows else 1

    def failed(self, tokens: int) -> None:
        """Memory ran out on a batch of that many tokens."""
        self.tokens, self._grows = max(1, tokens // 2), False
