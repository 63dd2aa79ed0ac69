"""`ShardBuilder`: a shard as its rows come, each put into its stored form at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradsift.store.shards import row_form, stored


class ShardBuilder:
    """The tensors of a shard of `num_rows` rows, on the CPU, which are filled in any order.

    Memory is that of the shard as it is stored: at 1 bit a thirty-second of its float32 features.
    """

    def __init__(self, meaning: Mapping[str, Any], num_rows: int) -> None:
        form, width = row_form(meaning)
        self._dtype = meaning["dtype"]
        self._tensors = {
            "features": torch.empty(num_rows, width, dtype=form),
            "scales": torch.empty(num_rows),
            "norms": torch.empty(num_rows),
        }
        self._is_there_R = torch.zeros(num_rows, dtype=torch.bool)

    def put(self, positions: Sequence[int], features_BK: Tensor) -> None:
        """Store float32 features of the rows at these positions, and their norms."""
        where_B = torch.as_tensor(positions)
        for name, tensor in stored(features_BK, self._dtype).items():
            self._tensors[name][where_B] = tensor.cpu()
        self._is_there_R[where_B] = True

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """`features`, `scales` and `norms`, when every row was put there."""
        assert self._is_there_R.all(), "a shard with a row missing"
        return self._tensors
