"""Scores of the baselines that aren't matched: the same files as LESS's, from texts, or from a number a row."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradsift.baselines import BASELINES, Texts
from gradsift.data import Example, SourceConfig, read_examples
from gradsift.encoding import Corpus
from gradsift.features import Origin, SoleOrigin
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
    score_N1, meaning = stored_numbers(run, SoleOrigin(kind))
    for target in targets:
        write_numbers(run, target, kind, score_N1, [meaning], config)


def stored_numbers(run: RunFolder, origin: Origin) -> tuple[Tensor, Mapping[str, Any]]:
    """The number that the pool's store of that origin has for each row, float32 [N, 1], and what it means."""
    corpus = Corpus(run.pool)
    store = FeatureStore(run.pool_features(origin.name), corpus.keys)
    require_made_from(store, origin, corpus)
    return store.features(stacked(store.shards())), store.meaning


def write_numbers(
    run: RunFolder, target: str, method: str, score_N1: Tensor, made_from: Sequence[Any], config: ScoreConfig
) -> None:
    """Write a number a row as the target's score, the same for all subtasks, unless it was before; `made_from` says
    what the numbers come from."""
    names = sorted({name or target for name in Corpus(run.target(target)).column("subtask")})
    inputs = fingerprint([method, config.decisive, *made_from, names])
    if facts_of(run.scores(target, method)).get("inputs") == inputs:
        logger.info("score %s: %s has its scores", target, method)
        return
    write_scores(run, TargetSide(target, names, [], 0, inputs), score_N1.repeat(1, len(names)), config, method)


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
