"""Batches: rows padded on the right, grouped by length up to a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradsift.encoding import IGNORED, EncodedRow


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


def batches_by_length(lengths: Sequence[int], tokens_per_batch: int, max_rows: int) -> list[list[int]]:
    """Positions of the rows, longest first, in batches of a padded size of at most `tokens_per_batch`.

    A row longer than the budget gets a batch of its own; no batch has more than `max_rows` rows.
    """
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda position: (-lengths[position], position)):
        last = batches[-1] if batches else []
        fits = bool(last) and (len(last) + 1) * lengths[last[0]] <= tokens_per_batch
        if fits and len(last) < max_rows:
            last.append(position)
        else:
            batches.append([position])
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
