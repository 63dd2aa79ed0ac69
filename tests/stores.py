"""What the tests of feature stores share: a store of ten random rows, and what they mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gradsift.store.builder import ShardBuilder
from gradsift.store.store import FeatureStore
from gradsift.store.writer import StoreWriter

KEYS = [("pool", f"row-{index}") for index in range(10)]


def meaning(**changes: Any) -> dict[str, Any]:
    """The meaning of gradients, with these fields changed."""
    return {
        "checkpoint": "c",
        "base_model": "b",
        "tokenizer": "t",
        "template": "tulu",
        "max_length": 64,
        "parameters": {"layer.0.lora_A.default.weight": [4, 8]},
        "projection": {"kind": "sketch", "dim": 16, "seed": 0, "version": 1},
        "gradient": "reference",
        "dtype": "float32",
        "data": "d",
        **changes,
    }


def features(scale: float = 1.0) -> torch.Tensor:
    """Ten rows of 16 random numbers."""
    return scale * torch.randn(10, 16, generator=torch.Generator().manual_seed(0))


def written(folder: Path, values: torch.Tensor, **changes: Any) -> FeatureStore:
    """A finished store of these rows in three shards; a field that is None is left out of the meaning."""
    described = {key: value for key, value in meaning(**changes).items() if value is not None}
    writer = StoreWriter(folder, described, KEYS, 4)
    writer.open()
    for shard in writer.missing():
        writer.write(shard, values[list(writer.rows(shard))])
    return writer.finish()


@contextmanager
def stopped_after_a_shard(part: str = "") -> Iterator[None]:
    """Ctrl-C in place of the second shard of the stores whose path has that part."""
    write = StoreWriter.write_built

    def stopped(writer: StoreWriter, shard: int, builder: ShardBuilder) -> None:
        if shard == 1 and (not part or part in writer.folder.parts):
            raise KeyboardInterrupt
        write(writer, shard, builder)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StoreWriter, "write_built", stopped)
        yield
