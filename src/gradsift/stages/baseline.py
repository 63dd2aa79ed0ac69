"""Scores of the baselines that aren't matched: the same files as LESS's, from texts, or from a number a row."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gradsift.baselines import BASELINES, Texts
from gradsift.data import Example, SourceConfig, read_examples
from gradsift.encoding import Corpus
from gradsift.features import SoleOrigin
from gradsift.machine import RunFolder, fingerprint
from gradsift.selection import ScoreConfig, scored_subtasks
from gradsift.stages.score import TargetSide, facts_of, require_made_from, write_scores
from gradsift.store import FeatureStore, stacked
from gradsift.tasks import TargetConfig, target_examples

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaselineStage:
    """Scores a target by a baseline where it has no scores yet."""

    run: RunFolder
    pool: Sequence[SourceConfig]
    config: ScoreConfig
    seed: int

    def score(self, target: TargetConfig, method: str) -> None:
        """Write the scores that `method` (a name of BASELINES) gives the pool's rows for the target."""
        examples = encoded_target(self.run, target, self.seed)
        subtasks = [example.subtask or target.name for example in examples]
        data = [Corpus(folder).manifest["fingerprint"] for folder in (self.run.pool, self.run.target(target.name))]
        inputs = fingerprint([method, self.seed, self.config.decisive, data, subtasks])
        if facts_of(self.run.scores(target.name, method)).get("inputs") == inputs:
            logger.info("score %s: %s has its scores", target.name, method)
            return
        members, names = scored_subtasks([example.id for example in examples], subtasks, self.config.subtasks)
        rows = encoded_pool(self.run, self.pool, self.seed)
        texts = Texts(
            pool=[example.text for example in rows],
            answers=[example.answer for example in rows],
            target=[example.text for example in examples],
            subtasks=[names.index(name) for name in members],
            seed=self.seed,
        )
        scores_NG = torch.from_numpy(BASELINES[method](texts))
        write_scores(self.run, TargetSide(target.name, names, [], 0, inputs), scores_NG, self.config, method)


def score_by_number(run: RunFolder, kind: str, targets: Sequence[str], config: ScoreConfig) -> None:
    """Write, for every target and subtask, the number that the pool's store of that kind has for each row."""
    corpus = Corpus(run.pool)
    store = FeatureStore(run.pool_features(kind), corpus.keys)
    require_made_from(store, SoleOrigin(kind), corpus)
    rows = stacked(store.shards())
    score_N1 = store.features(rows)
    for target in targets:
        names = sorted({name or target for name in Corpus(run.target(target)).column("subtask")})
        inputs = fingerprint([kind, config.decisive, store.meaning, names])
        if facts_of(run.scores(target, kind)).get("inputs") == inputs:
            logger.info("score %s: %s has its scores", target, kind)
            continue
        side = TargetSide(target, names, [], 0, inputs)
        write_scores(run, side, score_N1.repeat(1, len(names)), config, kind)


def encoded_pool(run: RunFolder, pool: Sequence[SourceConfig], seed: int) -> list[Example]:
    """The pool's examples that were not set aside, in the order of its rows."""
    return _in_corpus(Corpus(run.pool), [example for source in pool for example in read_examples(source, seed)])


def encoded_target(run: RunFolder, target: TargetConfig, seed: int) -> list[Example]:
    """The target's examples that were not set aside, in the order of its rows."""
    return _in_corpus(Corpus(run.target(target.name)), target_examples(target, seed))


def _in_corpus(corpus: Corpus, examples: Sequence[Example]) -> list[Example]:
    """The examples that were not set aside, in the corpus' order."""
    by_key = {(example.source, example.id): example for example in examples}
    return [by_key[key] for key in corpus.keys]
