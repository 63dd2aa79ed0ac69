"""Store tasks and their work units: one feature store to make, and one shard of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsift.encoding import Corpus
from gradsift.features.origins import Origin
from gradsift.features.settings import FeaturesConfig
from gradsift.store import StoreWriter, row_bytes

logger = logging.getLogger(__name__)

COARSE = ("int4", "int1")
"""Dtypes in which a representation's few numbers say little."""


@dataclass(frozen=True)
class StoreTask:
    """One feature store to make: these rows, with this model, in this form."""

    corpus: Path
    folder: Path
    origin: Origin
    meaning: Mapping[str, Any]

    @property
    def dim(self) -> int:
        """K."""
        return int(self.meaning["projection"]["dim"])


@dataclass(frozen=True)
class Unit:
    """One shard of a store, and the rows that it holds, by their positions in the corpus."""

    task: StoreTask
    rows: Sequence[int]
    shard: int

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.rows)

    @property
    def num_bytes(self) -> int:
        """What it takes on the disk, without its header."""
        return self.num_rows * row_bytes(self.task.dim, self.task.meaning["dtype"])


def store_writer(corpus: Path, folder: Path, meaning: Mapping[str, Any], config: FeaturesConfig) -> StoreWriter:
    """The writer of a store of a corpus' rows."""
    return StoreWriter(folder, meaning, Corpus(corpus).keys, config.shard_rows)


def say_if_coarse(folder: Path, meaning: Mapping[str, Any]) -> None:
    """Log that representations are about to be stored in few bits: `store_dtype` may have been meant for gradients."""
    if "representation" in meaning and meaning["dtype"] in COARSE:
        logger.warning(
            "features: %s is stored at %s, like the gradients: features.representation_dtype=float16 keeps the order "
            "that so few numbers give",
            folder,
            meaning["dtype"],
        )
