"""The score stage: the pool's stores are streamed once for all targets that have no scores yet."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from gradsift.encoding import Corpus
from gradsift.errors import DataError, StoreDamaged, StoreMismatch
from gradsift.features import Origin, TunedOrigin
from gradsift.machine import (
    Progress,
    RunFolder,
    Threads,
    atomic_path,
    compute_threads,
    fingerprint,
    finished_facts,
    read_parquet,
    renewed,
)
from gradsift.model import Checkpoint
from gradsift.selection import (
    Influence,
    ScoreConfig,
    build_products,
    checkpoint_weights,
    combined,
    on_one_scale,
    scored_subtasks,
    subtask_directions,
    usable_members,
    usable_rows,
)
from gradsift.store import FeatureStore, Span, SpanReader, require_joinable, stacked

logger = logging.getLogger(__name__)

KEYS = ("inputs", "subtasks", "num_unselectable")
COLUMNS = ("id", "source", "row", "num_tokens", "score", "best_subtask", "subtask_scores")
THREADS_PER_CORE = 3
"""While one waits for the disk, others compute."""


@dataclass(frozen=True)
class StoredDirections:
    """A target's directions [G, K] at one checkpoint after the other, made of its features when their turn comes: at
    K = 131072 an example's are half a megabyte a checkpoint."""

    stores: Sequence[FeatureStore]
    members: Sequence[str]
    """The subtask that each of V examples counts for."""
    names: Sequence[str]
    how: str

    def __iter__(self) -> Iterator[Tensor]:
        for store in self.stores:
            rows = stacked(store.shards())
            yield subtask_directions(store.features(rows), rows.norms_R, self.members, self.names, self.how)


@dataclass(frozen=True)
class TargetSide:
    """A target as the pool's rows meet it: its subtasks' names, and their directions [G, K] at every checkpoint."""

    name: str
    subtasks: list[str]
    directions: Iterable[Tensor]
    num_unusable: int
    inputs: str
    """Fingerprint of everything that the scores come from."""
    candidates: Sequence[int] | None = None
    """Positions of the rows that are scored; None: all."""

    def among(self, candidates: Sequence[int] | None) -> TargetSide:
        """With these rows alone scored. A row's score doesn't depend on the others in the stores, nor do the inputs."""
        if candidates is None:
            return self
        return replace(self, candidates=candidates, inputs=fingerprint([self.inputs, list(candidates)]))


def score_by_influence(
    run: RunFolder,
    checkpoints: Sequence[Origin],
    targets: Mapping[str, Sequence[int] | None],
    config: ScoreConfig,
    method: str = "less",
) -> None:
    """Write the scores of every target that has none from these stores with these settings.

    `targets`: by name, the positions of the pool's rows that are scored, None being all. A target's scores are of its
    own candidates, whatever the stores hold besides: so they stay what they are when a target is added.
    """
    weights = checkpoint_weights([checkpoint.learning_rate for checkpoint in checkpoints])
    corpus = Corpus(run.pool)
    keys = corpus.keys
    pools = [FeatureStore(run.pool_features(checkpoint.name), keys) for checkpoint in checkpoints]
    for checkpoint, pool in zip(checkpoints, pools, strict=True):
        require_made_from(pool, checkpoint, corpus)
    pending = []
    for target, candidates in targets.items():
        _require_rows(pools, target, candidates)
        side = _target_side(run, target, checkpoints, weights, pools, config).among(candidates)
        if facts_of(run.scores(target, method)).get("inputs") != side.inputs:
            pending.append(side)
    if not pending:
        logger.info("score: all %d targets have their scores", len(targets))
        return
    for side, scores_NG in zip(pending, pool_influences(pools, weights, pending), strict=True):
        write_scores(run, side, scores_NG, config, method)


def _require_rows(pools: Sequence[FeatureStore], target: str, candidates: Sequence[int] | None) -> None:
    """Raise StoreDamaged where a store is without a row that is to be scored."""
    for pool in pools:
        if pool.lacks(candidates):
            which = "" if candidates is None else f" that are candidates for target {target}"
            raise StoreDamaged(f"{pool.folder}: lacks rows of the pool{which}: run `gradsift features` first")


def _target_side(
    run: RunFolder,
    target: str,
    checkpoints: Sequence[Origin],
    weights: Sequence[float],
    pools: Sequence[FeatureStore],
    config: ScoreConfig,
) -> TargetSide:
    corpus = Corpus(run.target(target))
    keys, table = corpus.keys, corpus.table(["id", "subtask"])
    ids, subtasks = table["id"].to_pylist(), [name or target for name in table["subtask"].to_pylist()]
    stores, meanings = [], []
    for checkpoint, pool in zip(checkpoints, pools, strict=True):
        store = FeatureStore(run.target_features(target, checkpoint.name), keys)
        require_made_from(store, checkpoint, corpus)
        require_joinable(pool, store)
        stores.append(store)
        meanings.append([pool.meaning, store.meaning])
    norms_CV = torch.stack([torch.cat([span.norms_R for span in store.spans()]) for store in stores])
    usable_CV = usable_rows(norms_CV)
    members, names = _members(ids, subtasks, usable_CV.all(dim=0), config)
    for norms_V in norms_CV:
        usable_members(norms_V, members, names)  # a subtask without a direction is said before the pool is read
    directions = StoredDirections(stores, members, names, config.subtasks)
    inputs = fingerprint([config.decisive, list(weights), subtasks, meanings])
    return TargetSide(target, names, directions, int((~usable_CV).sum(dim=1).max()), inputs)


def require_made_from(store: FeatureStore, checkpoint: Origin, corpus: Corpus) -> None:
    """Raise StoreMismatch where a store was made at another checkpoint than there is now, or of other rows."""
    now = {"data": corpus.manifest["fingerprint"], **corpus.manifest["encoding"]}
    if isinstance(checkpoint, Checkpoint):
        now["checkpoint"] = checkpoint.fingerprint()
    if isinstance(checkpoint, TunedOrigin):
        now["tuned"] = checkpoint.fingerprint()
    for field, value in now.items():
        if store.meaning.get(field, value) != value:
            where = f"{store.folder} against what the run folder has now"
            raise StoreMismatch(field, store.meaning[field], value, where)


def _members(
    ids: Sequence[str], subtasks: Sequence[str], usable_V: Tensor, config: ScoreConfig
) -> tuple[list[str], list[str]]:
    """`scored_subtasks`; an example that has no direction takes no turn of its own."""
    members, names = scored_subtasks(ids, subtasks, config.subtasks)
    if config.subtasks == "examples":
        without = {example for example, usable in zip(ids, usable_V.tolist(), strict=True) if not usable}
        names = [name for name in names if name not in without] or names
    return members, names


def pool_influences(
    pools: Sequence[FeatureStore], weights: Sequence[float], sides: Sequence[TargetSide]
) -> list[Tensor]:
    """Inf(z, j) of every target, float32 [N, G] each, from one pass over the pool's stores; NaN for rows that one of
    the stores lacks."""
    sizes = [len(side.subtasks) for side in sides]
    directions_of_all = zip(*(side.directions for side in sides), strict=True)
    total_NG = torch.zeros(pools[0].num_corpus_rows, sum(sizes))
    with (
        Progress("score", sum(pool.num_rows for pool in pools)) as progress,
        compute_threads(THREADS_PER_CORE) as threads,
    ):
        for pool, weight, directions in zip(pools, weights, directions_of_all, strict=True):
            stored_MG = total_NG if pool.positions is None else total_NG[pool.positions]
            start = 0
            for scores_RG in _span_scores(threads, pool, torch.cat(directions)):
                stop = start + len(scores_RG)
                stored_MG[start:stop].add_(scores_RG, alpha=weight)
                progress.advance(stop - start)
                start = stop
            if pool.positions is not None:
                total_NG = torch.full_like(total_NG, torch.nan)
                total_NG[pool.positions] = stored_MG
    return list(total_NG.split(sizes, dim=1))


def _span_scores(threads: Threads, pool: FeatureStore, directions_GK: Tensor) -> Iterator[Tensor]:
    """Scores [R, G] of a pool's spans, in their order: a thread reads and scores a span of its own at a time."""
    products = build_products(directions_GK, pool.dtype)
    idle: SimpleQueue[tuple[SpanReader, Influence]] = SimpleQueue()
    for _ in range(threads.count):
        idle.put((SpanReader(), Influence(products, threads.core)))

    def scored(span: Span) -> Tensor:
        reader, influence = mine = idle.get()
        try:
            return influence.scores(reader.blocks(span), span.norms_R / span.scales_R)
        finally:
            idle.put(mine)

    return threads.in_order(scored, pool.spans())


def write_scores(
    run: RunFolder, side: TargetSide, scores_NG: Tensor, config: ScoreConfig, method: str = "less"
) -> None:
    """Put the subtasks' scores on one scale, combine and write them; the facts beside them, written last, say what they
    come from."""
    corpus = Corpus(run.pool)
    scores_NG, num_others = _of_candidates(scores_NG, side.candidates)
    scores_NG = on_one_scale(scores_NG, config)
    score_N, best_N = combined(scores_NG, config.combine)
    num_unselectable = int((~score_N.isfinite()).sum()) - num_others
    table = corpus.table(["id", "source", "row", "num_tokens"])
    table = table.append_column("score", pa.array(score_N.numpy(), from_pandas=True))
    table = table.append_column("best_subtask", pa.array(side.subtasks, pa.string()).take(pa.array(best_N.numpy())))
    table = table.append_column("subtask_scores", _lists(scores_NG))
    facts = {
        "target": side.name,
        "method": method,
        "subtasks": side.subtasks,
        "settings": config.model_dump(),
        "num_rows": corpus.num_rows,
        "num_unselectable": num_unselectable,
        "num_unusable_target_examples": side.num_unusable,
        "inputs": side.inputs,
        **({} if side.candidates is None else {"num_candidates": len(side.candidates)}),
    }
    path = run.scores(side.name, method)
    with renewed(path.with_suffix(".json"), path) as record, atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata({"gradsift": json.dumps(facts)}), temporary)
        record |= facts
    _warn(side, num_unselectable)


def _of_candidates(scores_NG: Tensor, candidates: Sequence[int] | None) -> tuple[Tensor, int]:
    """The scores with NaN for rows that are no candidates, and the number of these."""
    if candidates is None:
        return scores_NG, 0
    left_NG = torch.full_like(scores_NG, torch.nan)
    left_NG[list(candidates)] = scores_NG[list(candidates)]
    return left_NG, len(scores_NG) - len(candidates)


def _lists(scores_NG: Tensor) -> pa.Array:
    rows, columns = scores_NG.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * columns)
    return pa.ListArray.from_arrays(offsets, pa.array(scores_NG.flatten().numpy(), from_pandas=True))


def _warn(side: TargetSide, num_unselectable: int) -> None:
    if num_unselectable:
        logger.warning(
            "score %s: %d pool rows have zero or non-finite features and can't be selected",
            side.name,
            num_unselectable,
        )
    if side.num_unusable:
        logger.warning("score %s: %d target examples have no direction and don't count", side.name, side.num_unusable)


def facts_of(path: Path) -> Mapping[str, Any]:
    """What the scores at `path` were made from; empty where there are none as they were written."""
    return finished_facts(path.with_suffix(".json"), [path], KEYS) or {}


def score_facts(run: RunFolder, target: str, method: str) -> Mapping[str, Any]:
    """What a target's scores were made from; raises DataError where there are none."""
    path = run.scores(target, method)
    facts = facts_of(path)
    if not facts:
        raise DataError(f"there are no whole scores for target {target}: run `gradsift score` first", path)
    return facts


def read_scores(run: RunFolder, target: str, method: str = "less") -> pa.Table:
    """A target's scores; raises DataError where there are none."""
    score_facts(run, target, method)
    return read_parquet(run.scores(target, method), COLUMNS)
