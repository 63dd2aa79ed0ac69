"""Quantising: a finished store written again at fewer bits a value, beside the one that it comes from."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from gradsift.errors import UserError
from gradsift.machine import Progress
from gradsift.store.blocks import block_rows
from gradsift.store.quantization import BITS
from gradsift.store.store import FeatureStore
from gradsift.store.writer import StoreWriter

logger = logging.getLogger(__name__)


def quantize(source: FeatureStore, bits: int, folder: Path) -> FeatureStore:
    """The store in `folder`: the same rows and meaning, another dtype; shards that are there are not made again.

    The source is checked first: a damaged one would pass its damage on under a good checksum. Raises StoreDamaged
    then, and UserError where the source is quantised already or is the folder itself.
    """
    dtype = f"int{bits}"
    _require_original(source, folder)
    writer = _writer(source, folder, dtype)
    if writer.is_finished(source.positions):
        logger.info("quantize: %s is finished", folder)
        return FeatureStore(folder)
    source.verify()
    writer.open(source.positions)
    missing = writer.missing()
    with Progress("quantize", sum(len(writer.rows(shard)) for shard in missing)) as progress:
        for index in missing:
            shard = source.shard(index)
            builder, step = writer.builder(index), block_rows(torch.float32, source.dim)
            for start in range(0, len(shard.ids), step):
                part = shard.part(start, start + step)
                builder.put(range(start, start + len(part.ids)), source.features(part))
            writer.write_built(index, builder)
            progress.advance(len(shard.ids))
    return writer.finish()


def _require_original(source: FeatureStore, folder: Path) -> None:
    if source.dtype in BITS:
        raise UserError(f"{source.folder}: is {source.dtype} already: quantise the store that it was made from")
    if folder.resolve() == source.folder.resolve():
        raise UserError(f"{folder}: is the store itself: give --out another folder")


def _writer(source: FeatureStore, folder: Path, dtype: str) -> StoreWriter:
    shard_rows = max((record["rows"] for record in source.manifest["shards"]), default=1)
    return StoreWriter(
        folder, {**source.meaning, "dtype": dtype}, _corpus_keys(source), shard_rows, source.dtype, source.shard_rows
    )


def _corpus_keys(source: FeatureStore) -> list[tuple[str, str]]:
    """By position in the corpus; of rows that the store doesn't hold nothing is known, and nothing is asked."""
    if source.positions is None:
        return list(source.keys())
    keys = [("", "")] * (max(source.positions, default=-1) + 1)
    for position, key in zip(source.positions, source.keys(), strict=True):
        keys[position] = key
    return keys
