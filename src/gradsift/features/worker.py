"""`FeatureWorker`: one process's model; computes shards of feature stores, in batches that its memory takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from gradsift.encoding import Corpus, EncodedRow, TokenBudget, by_length, num_fitting, pad_rows
from gradsift.errors import UserError
from gradsift.executors import Report
from gradsift.features.makers import Maker, Makers
from gradsift.features.settings import FeaturesConfig
from gradsift.features.work import Unit, store_writer
from gradsift.machine import peak_share, pick_device
from gradsift.model import ModelConfig
from gradsift.store import ShardBuilder, StoreWriter


class FeatureWorker:
    """One process's model: computes shards, in batches of rows of like length."""

    def __init__(self, model: ModelConfig, config: FeaturesConfig, index: int) -> None:
        self._config, self._device = config, pick_device(index)
        self._makers = Makers(model, config.projection, config.adam, self._device)
        self._budget = TokenBudget(config.tokens_per_batch, self._device.type)
        self._writers: dict[Path, StoreWriter] = {}
        self._corpora: dict[Path, Corpus] = {}

    def do(self, unit: Unit, report: Report) -> None:
        """Compute one shard and store it."""
        task = unit.task
        if task.folder not in self._writers:
            self._writers[task.folder] = store_writer(task.corpus, task.folder, task.meaning, self._config)
            self._corpora[task.folder] = Corpus(task.corpus)
        rows = self._corpora[task.folder].rows_at(unit.rows)
        maker = self._makers.maker(task.origin, task.meaning.get("gradient", "sgd"))
        self._makers.probe_once(rows)
        writer = self._writers[task.folder]
        builder = writer.builder(unit.shard)
        self._fill(builder, rows, maker, report)
        writer.write_built(unit.shard, builder)

    def _fill(self, builder: ShardBuilder, rows: Sequence[EncodedRow], maker: Maker, report: Report) -> None:
        """Put the features of the rows into the shard, batch by batch."""
        lengths = [row.num_tokens for row in rows]
        waiting = by_length(lengths)
        while waiting:
            positions = waiting[: num_fitting([lengths[position] for position in waiting], self._budget.tokens)]
            batch = [rows[position] for position in positions]
            done_BK = self._attempt(maker, batch)
            if done_BK is not None:
                builder.put(positions, done_BK)
                waiting = waiting[len(positions) :]
                report(len(batch), sum(row.num_tokens for row in batch))

    def _attempt(self, maker: Maker, rows: Sequence[EncodedRow]) -> torch.Tensor | None:
        """Features of a batch; None where memory ran out: the budget is smaller then. Raises UserError on one row."""
        try:
            features_BK = maker(pad_rows(rows).to(self._device))
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise UserError(
                    f"out of memory on a row of {rows[0].num_tokens} tokens: lower encoding.max_length, or load the "
                    "model in another dtype"
                ) from None
            self._budget.failed(len(rows) * rows[0].num_tokens)
            torch.cuda.empty_cache()
            return None
        self._budget.succeeded(len(rows) * rows[0].num_tokens, peak_share(self._device))
        return features_BK
