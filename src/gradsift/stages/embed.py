"""The features stage of the method `embedding`: texts of the pool and the targets, embedded and stored by shards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from gradsift.baselines import EMBEDDING, EmbeddingConfig, embeddings, load_embedder
from gradsift.data import Example, SourceConfig
from gradsift.encoding import Corpus
from gradsift.features import FeaturesConfig, say_if_coarse, store_writer, unprojected
from gradsift.machine import Progress, RunFolder, pick_device
from gradsift.stages.baseline import encoded_pool, encoded_target
from gradsift.tasks import TargetConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddingStage:
    """Makes the stores of embeddings that are missing, in this process; finished shards are never made again."""

    run: RunFolder
    pool: Sequence[SourceConfig]
    config: EmbeddingConfig
    features: FeaturesConfig
    seed: int

    def require_model(self) -> None:
        """Raise ConfigError where the model, or sentence-transformers, isn't there: before other methods' work."""
        load_embedder(self.config, pick_device())

    def collect(self, targets: Sequence[TargetConfig]) -> None:
        """Finish the pool's store and the targets'; an example's text is its messages, one after the other."""
        self._embed(
            self.run.pool, self.run.pool_features(EMBEDDING), partial(encoded_pool, self.run, self.pool, self.seed)
        )
        for target in targets:
            folder = self.run.target_features(target.name, EMBEDDING)
            self._embed(self.run.target(target.name), folder, partial(encoded_target, self.run, target, self.seed))

    def _embed(self, corpus: Path, folder: Path, read: Callable[[], Sequence[Example]]) -> None:
        meaning = {
            "representation": EMBEDDING,
            "embedder": self.config.model,
            "projection": unprojected(self._dim),
            "dtype": self.features.dtype_of(is_pool=corpus == self.run.pool, is_representation=True),
            "data": Corpus(corpus).manifest["fingerprint"],
        }
        writer = store_writer(corpus, folder, meaning, self.features)
        if writer.is_finished():
            logger.info("features: %s is finished", folder)
            return
        say_if_coarse(folder, meaning)
        writer.open()
        missing, examples = {shard: writer.rows(shard) for shard in writer.missing()}, read()
        with Progress(f"embed {corpus.name}", sum(map(len, missing.values()))) as progress:
            for shard, rows in missing.items():
                texts = [examples[row].text for row in rows]
                writer.write(shard, embeddings(self._embedder, texts, self.config.batch_size))
                progress.advance(len(texts))
        writer.finish()

    @cached_property
    def _dim(self) -> int:
        """K, by embedding a word: the model's own word for it has changed its name."""
        return embeddings(self._embedder, ["word"], 1).shape[1]

    @cached_property
    def _embedder(self) -> Any:
        return load_embedder(self.config, pick_device())
