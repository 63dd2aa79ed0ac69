"""The select stage: the best rows, written in the user's own schema."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gradsift.data import Example, SourceConfig, selected_examples, selected_lines
from gradsift.encoding import Corpus
from gradsift.errors import DataError
from gradsift.machine import RunFolder, atomic_open, file_sha256, fingerprint, read_record, renewed
from gradsift.selection import (
    Chosen,
    ScoreConfig,
    ScoredRows,
    SelectConfig,
    choose,
    drawn,
    fused,
    ranking,
    wanted_count,
    with_gumbel_noise,
)
from gradsift.stages.overlap import PoolOverlap
from gradsift.stages.score import read_scores, score_facts
from gradsift.tasks import TargetConfig
from gradsift.texts import new_duplicates

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

KEYS = ("inputs", "sha256", "rows", "num_selected", "num_tokens", "per_source", "kept_out")
NEWER = {"random_share": 0.0, "less_strategy": "top"}
"""Keys of `select` that came later, and what was done before: selections made then stay."""
LARGE_SHARE = 0.5
"""Share of the chosen rows above which one subtask's is worth a word …"""
MOST_ALONE = 2
"""… where a target has more subtasks than these."""


@dataclass(frozen=True)
class SelectStage:
    """Chooses the rows for each target where that is not done yet."""

    run: RunFolder
    pool: Sequence[SourceConfig]
    config: SelectConfig
    seed: int

    def select(self, targets: Sequence[TargetConfig]) -> None:
        """Write the rows chosen for every target, best first. Raises DataError where there is none."""
        scored_from = [self._scored_from(target.name) for target in targets]
        overlaps = self._overlaps(targets)
        for target, scores in zip(targets, scored_from, strict=True):
            self._select(target.name, scores, overlaps.get(target.name, {"inputs": None, "rows": []}))

    def _scored_from(self, target: str) -> list[Mapping[str, Any]]:
        """What the scores of each method come from; raises DataError where there are none."""
        return [score_facts(self.run, target, method) for method in self.config.methods]

    def _select(self, target: str, scores: Sequence[Mapping[str, Any]], overlap: Mapping[str, Any]) -> None:
        seed = self.seed if self.config.gumbel or self.config.random_share else None
        made_from = [facts["inputs"] for facts in scores]
        source = made_from[0] if len(made_from) == 1 else made_from
        inputs = fingerprint([self._settings(), source, seed, overlap["inputs"]])
        path = self.run.selection(target, self.config.label)
        described = path.with_suffix(".json")
        if _is_finished(path, inputs):
            logger.info("select %s: done before", target)
            return
        tables = [read_scores(self.run, target, method) for method in self.config.methods]
        self._say_what_turns_do_not_see(target, scores)
        chosen = self._chosen(tables, np.asarray(overlap["rows"], dtype=np.int64), target)
        taken = tables[0].take(chosen.rows)
        with renewed(described, path) as facts:
            facts |= {"target": target, **self._written(path, taken, chosen), "inputs": inputs}
            facts["rows"] = taken["row"].to_pylist()
            for item in scores:
                facts |= {key: item[key] for key in ("num_candidates",) if key in item}
        self._warn_of_one_subtask(target, facts["per_subtask"], taken)

    def _say_what_turns_do_not_see(self, target: str, scores: Sequence[Mapping[str, Any]]) -> None:
        """Where subtasks take rows by turns, neither how their scores are combined nor their scale matters, but for
        the scale beside noise."""
        for method, facts in zip(self.config.methods, scores, strict=True):
            default, given = ScoreConfig(), facts.get("settings", {})
            keys = ["combine"] if self.config.gumbel else ["combine", "normalize"]
            set_in_vain = [key for key in keys if given.get(key, getattr(default, key)) != getattr(default, key)]
            if set_in_vain and self.config.order_of(method) == "round_robin":
                logger.info(
                    "select %s: %s takes rows by turns (round_robin), where nothing but ties depends on %s",
                    target,
                    method,
                    " and ".join(f"score.{key}={given[key]}" for key in set_in_vain),
                )

    def _settings(self) -> dict[str, Any]:
        """What decides a selection, without newer keys that stand at what was done before there were any."""
        settings = self.config.model_dump(exclude={"name", *self.config.idle_keys})
        return {key: value for key, value in settings.items() if key not in NEWER or value != NEWER[key]}

    def _overlaps(self, targets: Sequence[TargetConfig]) -> Mapping[str, Mapping[str, Any]]:
        """By target: the rows that give away its items, and what they come from; nothing where they may stay."""
        if not self.config.overlap_ngrams:
            return {}
        found = PoolOverlap(self.run, self.pool, self.config.overlap_ngrams, self.seed).of(targets)
        for name, facts in found.items():
            if facts["rows"]:
                logger.warning(
                    "select %s: %d pool rows hold text of its validation or held-out items and are kept out (%s)",
                    name,
                    len(facts["rows"]),
                    self.run.overlap(name),
                )
        return found

    def _chosen(self, tables: Sequence[pa.Table], overlapping: npt.NDArray[np.int64], target: str) -> Chosen:
        corpus, config = Corpus(self.run.pool), self.config
        sides = [scored_rows(table, corpus.num_read, overlapping) for table in tables]
        order, at_random, rows = self._order(sides), drawn(sides, self.seed), sides[0]
        found = new_duplicates(config.deduplicate, config.near_threshold) if config.method != "full" else None
        if found is None:
            chosen = choose(order, rows, config, at_random=at_random)
        else:
            texts = _TextsAhead(self.pool, corpus)
            orders = texts.following(order), texts.following(at_random)
            chosen = choose(orders[0], rows, config, lambda row: found.holds(texts.text_of[row]), orders[1])
        kept_out = {"overlap_ngrams": len(overlapping), **chosen.kept_out}
        chosen = replace(chosen, kept_out={key: count for key, count in kept_out.items() if count})
        self._warn(chosen, rows, target)
        return chosen

    def _order(self, sides: Sequence[ScoredRows]) -> Iterator[int]:
        """The rows, best first: a method's own order, or those of several fused."""
        config = self.config
        if config.gumbel and config.method != "full":
            sides = [with_gumbel_noise(side, config.gumbel, self.seed) for side in sides]
        orders = [ranking(side, config.order_of(name)) for side, name in zip(sides, config.methods, strict=True)]
        return orders[0] if len(orders) == 1 else fused([list(order) for order in orders])

    def _warn(self, chosen: Chosen, rows: ScoredRows, target: str) -> None:
        """Raises DataError where no row was chosen."""
        kept_out = "".join(f"; {count} were kept out by select.{key}" for key, count in chosen.kept_out.items())
        if not len(chosen.rows):
            num_scored = int(np.isfinite(rows.score_N).sum())
            reason = "none fits select.tokens" if num_scored else "no score is a number"
            raise DataError(
                f"no row can be selected for target {target}: {reason}{kept_out}",
                self.run.scores(target, self.config.methods[0]),
            )
        wanted = wanted_count(rows.num_read, self.config)
        if self.config.method != "full" and self.config.tokens is None and len(chosen.rows) < wanted:
            logger.warning("select: %d rows asked for, only %d can be selected%s", wanted, len(chosen.rows), kept_out)

    def _warn_of_one_subtask(self, target: str, per_subtask: Mapping[str, int], taken: pa.Table) -> None:
        """The largest score of all subtasks is often that of one whose scores vary more than the others'."""
        scores_MG = _subtask_scores(taken)
        num_rows, num_subtasks = scores_MG.shape
        is_top = self.config.order_of(self.config.methods[0]) == "top"
        by_largest = is_top and np.array_equal(taken["score"].to_numpy(), scores_MG.max(axis=1))
        name, count = max(per_subtask.items(), key=itemgetter(1), default=("", 0))
        if by_largest and num_subtasks > MOST_ALONE and count > LARGE_SHARE * num_rows:
            logger.warning(
                "select %s: %d of %d rows are chosen for %s alone, one of %d subtasks; select.strategy=round_robin "
                "gives each its turn, score.normalize=zscore all the same scale",
                target,
                count,
                num_rows,
                name,
                num_subtasks,
            )

    def _written(self, path: Path, taken: pa.Table, chosen: Chosen) -> dict[str, Any]:
        """Write the rows; what is to be known of them, `taken` being their part of the scores."""
        keys = _keys(Corpus(self.run.pool), chosen.rows)
        lines = _gathered(self.pool, keys, selected_lines)
        with atomic_open(path) as file:
            file.writelines(line + b"\n" for line in lines)
        return {
            "settings": self.config.model_dump(),
            "num_selected": len(chosen.rows),
            "kept_out": chosen.kept_out,
            "per_source": dict(sorted(Counter(name for name, _ in keys).items())),
            "num_random": chosen.num_random,
            "per_subtask": _per_subtask(taken) if len(self.config.methods) == 1 else {},
            "num_tokens": int(np.sum(taken["num_tokens"].to_numpy())),
            "sha256": file_sha256(path),
        }


def scored_rows(table: pa.Table, num_read: int, without: Collection[int] | npt.NDArray[np.int64] = ()) -> ScoredRows:
    """The rows of the scores' table; those that are not to be chosen, by their `row`, have no score."""
    score_N = table["score"].to_numpy().astype(np.float64)
    score_N[np.isin(table["row"].to_numpy(), np.asarray(without, dtype=np.int64))] = np.nan
    return ScoredRows(
        ids=table["id"].to_pylist(),
        sources=table["source"].to_pylist(),
        num_tokens_N=table["num_tokens"].to_numpy().astype(np.int64),
        score_N=score_N,
        subtask_scores_NG=_subtask_scores(table),
        num_read=num_read,
    )


def _subtask_scores(table: pa.Table) -> npt.NDArray[np.float32]:
    """The rows' scores for every subtask: float32 [N, G]."""
    scores: npt.NDArray[np.float32] = pc.list_flatten(table["subtask_scores"]).to_numpy().astype(np.float32)
    return scores.reshape(table.num_rows, -1)


def _per_subtask(taken: pa.Table) -> dict[str, int]:
    """How many rows suit which subtask best; nothing where the method's scores are the same for all."""
    scores_MG = _subtask_scores(taken)
    if (scores_MG == scores_MG[:, :1]).all():
        return {}
    return dict(sorted(Counter(taken["best_subtask"].to_pylist()).items()))


class _TextsAhead:
    """The texts of the next rows of an order, read a block at a time: each block is one walk through the files."""

    def __init__(self, pool: Sequence[SourceConfig], corpus: Corpus) -> None:
        self._pool, self._corpus = pool, corpus
        self._block = max(1000, corpus.num_rows // 10)
        self.text_of: dict[int, str] = {}

    def following(self, order: Iterator[int]) -> Iterator[int]:
        """The order as it is; `text_of` has the text of the row that was given last."""
        while block := list(islice(order, self._block)):
            examples = _gathered(self._pool, _keys(self._corpus, block), selected_examples)
            self.text_of = {row: example.text for row, example in zip(block, examples, strict=True)}
            yield from block


def _keys(corpus: Corpus, chosen: Any) -> list[tuple[str, int]]:
    """(source, position in it) of the rows at these positions in the corpus."""
    table = corpus.table(["source", "source_row"]).take(chosen)
    return list(zip(table["source"].to_pylist(), table["source_row"].to_pylist(), strict=True))


def _gathered(
    sources: Sequence[SourceConfig],
    keys: Sequence[tuple[str, int]],
    read: Callable[[SourceConfig, Collection[int]], Mapping[int, Item]],
) -> list[Item]:
    """What `read` gives of the keys' rows, in their order; the encode stage has checked that the files are as they
    were."""
    found: dict[str, Mapping[int, Item]] = {}
    for source in sources:
        rows = [row for name, row in keys if name == source.name]
        if rows:
            found[str(source.name)] = read(source, rows)
    return [found[source][row] for source, row in keys]


def _is_finished(path: Path, inputs: str) -> bool:
    """Whether these rows were written from these inputs. Raises DataError where the file isn't as it was written."""
    described = path.with_suffix(".json")
    if not (path.is_file() and described.is_file()):
        return False
    facts = read_record(described, KEYS).facts
    if facts["inputs"] != inputs:
        return False
    _require_as_written(path, facts)
    return True


def _require_as_written(path: Path, facts: Mapping[str, Any]) -> None:
    if file_sha256(path) != facts["sha256"]:
        raise DataError(
            "was changed by hand: name it in train.data to train on it, or delete it to select again",
            path,
        )


def read_selection(run: RunFolder, target: str, method: str) -> Mapping[str, Any]:
    """What a selection was made from, and its rows' positions in the pool. Raises DataError where there is none, or
    where the file isn't the one that was written."""
    path = run.selection(target, method)
    described = path.with_suffix(".json")
    if not (path.is_file() and described.is_file()):
        raise DataError(f"there is no selection for target {target}: run `gradsift select` first", path)
    facts = read_record(described, KEYS).facts
    _require_as_written(path, facts)
    return facts


def selection_examples(run: RunFolder, sources: Sequence[SourceConfig], target: str, method: str) -> list[Example]:
    """The chosen rows as examples, best first."""
    corpus = Corpus(run.pool)
    position = {row: index for index, row in enumerate(corpus.column("row"))}
    chosen = [position[row] for row in read_selection(run, target, method)["rows"]]
    return _gathered(sources, _keys(corpus, chosen), selected_examples)
