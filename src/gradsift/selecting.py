"""From scores to the rows that are chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, model_validator


class SelectConfig(BaseModel):
    """How many rows to choose, and how. One of `fraction`, `count` and `tokens`; without any, 5 %."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["less", "random", "bm25", "full"] = "less"
    """What scores the rows; `full` takes every row, whatever the budget."""
    strategy: Literal["top"] = "top"
    fraction: float | None = Field(None, gt=0, le=1)
    """Of the rows read from the pool."""
    count: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)
    """Rows are taken until the next one would pass this many tokens."""

    @model_validator(mode="after")
    def _one_budget(self) -> SelectConfig:
        if sum(budget is not None for budget in (self.fraction, self.count, self.tokens)) > 1:
            raise ValueError("give one of fraction, count and tokens")
        return self


DEFAULT_FRACTION = 0.05


def ranking(scores: npt.NDArray[np.float64], ids: Sequence[str], sources: Sequence[str]) -> npt.NDArray[np.int64]:
    """Positions of the rows that can be selected, best first: by score, then id, then source; never a NaN."""
    selectable = np.flatnonzero(np.isfinite(scores))
    table = pa.table({"score": scores, "id": pa.array(ids, pa.string()), "source": pa.array(sources, pa.string())})
    keys = [("score", "descending"), ("id", "ascending"), ("source", "ascending")]
    order: npt.NDArray[np.uint64] = pc.sort_indices(table.take(selectable), sort_keys=keys).to_numpy()
    return selectable[order]


def select_top(
    ranked: npt.NDArray[np.int64], num_tokens: npt.NDArray[np.int64], num_read: int, config: SelectConfig
) -> npt.NDArray[np.int64]:
    """The head of the ranking that fits the budget; fewer where fewer can be selected."""
    if config.method != "full" and config.tokens is not None:
        return ranked[: int(np.searchsorted(np.cumsum(num_tokens[ranked]), config.tokens, side="right"))]
    return ranked[: wanted_count(num_read, config)]


def wanted_count(num_read: int, config: SelectConfig) -> int:
    """Rows asked for by `count` or `fraction`; a fraction is rounded down, and chooses at least one."""
    if config.method == "full":
        return num_read
    if config.count is not None:
        return config.count
    fraction = DEFAULT_FRACTION if config.fraction is None else config.fraction
    return max(1, math.floor(fraction * num_read + 1e-9))
