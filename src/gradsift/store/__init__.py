"""Feature stores: K numbers for every row, in shards that are either whole or absent, and say what they mean."""

from __future__ import annotations

from gradsift.store.blocks import Span, SpanReader, block_rows
from gradsift.store.builder import ShardBuilder
from gradsift.store.checksums import checksum
from gradsift.store.conversion import quantize
from gradsift.store.quantization import (
    BITS,
    LEVEL_FACTORS,
    multiples_of_levels,
    packed_width,
    quantized,
    unpacked,
)
from gradsift.store.shards import DTYPES, row_bytes, stacked
from gradsift.store.store import FeatureStore, require_joinable
from gradsift.store.writer import StoreWriter

__all__ = [
    "BITS",
    "DTYPES",
    "LEVEL_FACTORS",
    "FeatureStore",
    "ShardBuilder",
    "Span",
    "SpanReader",
    "StoreWriter",
    "block_rows",
    "checksum",
    "multiples_of_levels",
    "packed_width",
    "quantize",
    "quantized",
    "require_joinable",
    "row_bytes",
    "stacked",
    "unpacked",
]
