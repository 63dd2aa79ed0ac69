"""The features stage: stores of every row of the pool and the targets, at every checkpoint or of a representation."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from gradsift.encoding import Corpus
from gradsift.executors import ExecutorConfig, finish_units
from gradsift.features import (
    FeaturesConfig,
    FeatureWorker,
    Origin,
    StoreTask,
    Unit,
    origin_meaning,
    rows_meaning,
    say_if_coarse,
    store_writer,
)
from gradsift.machine import Progress, RunFolder, require_space
from gradsift.model import ModelConfig, describe_model, model_fingerprint
from gradsift.store import StoreWriter

logger = logging.getLogger(__name__)

MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True)
class FeaturesStage:
    """Makes the stores that are missing; finished shards are never made again."""

    run: RunFolder
    model: ModelConfig
    config: FeaturesConfig
    executor: ExecutorConfig

    def collect(
        self,
        origins: Sequence[Origin],
        targets: Sequence[str],
        candidates: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Finish the pool's and the targets' stores of these origins.

        `candidates`: by target, the pool's rows that are wanted, None being all. A store that holds others keeps them.
        """
        writers = self._writers(origins, targets)
        union = None if candidates is None else {row for rows in candidates.values() for row in rows}
        wanted = {self.run.pool: union}
        unfinished = [(task, writer) for task, writer in writers if not writer.is_finished(wanted.get(task.corpus))]
        if not unfinished:
            logger.info("features: all %d stores are finished", len(writers))
            return
        for task, writer in unfinished:
            say_if_coarse(task.folder, task.meaning)
            writer.open(wanted.get(task.corpus))
        self._make(unfinished)
        for _, writer in unfinished:
            writer.finish()

    def _make(self, unfinished: Sequence[tuple[StoreTask, StoreWriter]]) -> None:
        """Make the shards that are missing."""
        units = _missing(unfinished)
        needed = MANIFEST_BYTES * len(unfinished) + sum(unit.num_bytes for unit in units)
        smaller = "" if self.config.store_dtype == "int1" else ", or set features.store_dtype=int1"
        remedy = f"lower features.projection.dim{smaller}"
        require_space(self.run.path, needed, "the features", remedy)
        logger.info("features: %d of %d shards to make", len(units), sum(w.num_shards for _, w in unfinished))
        make_worker = partial(FeatureWorker, self.model, self.config)
        with Progress("features", sum(unit.num_rows for unit in units)) as progress:
            finish_units(make_worker, partial(_missing, unfinished), self.executor, progress.advance)

    def _writers(self, origins: Sequence[Origin], targets: Sequence[str]) -> list[tuple[StoreTask, StoreWriter]]:
        made_with = {"base_model": model_fingerprint(self.model), **describe_model(self.model).meaning()}
        writers = []
        for origin in origins:
            shared = {**origin_meaning(origin, self.config, self.model), **made_with}
            folders = {self.run.pool: self.run.pool_features(origin.name)}
            folders |= {self.run.target(name): self.run.target_features(name, origin.name) for name in targets}
            for source, folder in folders.items():
                own = rows_meaning(origin, self.config, Corpus(source), is_pool=source == self.run.pool)
                task = StoreTask(source, folder, origin, {**shared, **own})
                writers.append((task, store_writer(source, folder, task.meaning, self.config)))
        return writers


def _missing(unfinished: Sequence[tuple[StoreTask, StoreWriter]]) -> list[Unit]:
    """The shards still to make: an origin's pool, then its targets, so that a checkpoint is loaded once."""
    return [Unit(task, writer.rows(shard), shard) for task, writer in unfinished for shard in writer.missing()]
