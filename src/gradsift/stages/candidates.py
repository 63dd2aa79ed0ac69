"""Candidates: the pool's rows that a cheap method keeps for a target, and whose gradients alone are then taken."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from gradsift.baselines import own_strategy
from gradsift.encoding import Corpus
from gradsift.features import CandidatesConfig
from gradsift.machine import RunFolder, read_record
from gradsift.selection import SelectConfig, ranking, wanted_count
from gradsift.stages.score import read_scores
from gradsift.stages.select import scored_rows

logger = logging.getLogger(__name__)


def candidates_for(run: RunFolder, target: str, config: CandidatesConfig) -> list[int]:
    """Positions in the pool, ascending, of the best rows by the method's scores and its own strategy.

    As many as the fraction is of the rows read from the pool, as in `select`; never a row whose score is no number.
    """
    corpus = Corpus(run.pool)
    rows = scored_rows(read_scores(run, target, config.method), corpus.num_read)
    count = wanted_count(corpus.num_read, SelectConfig(fraction=config.fraction))
    return sorted(islice(ranking(rows, own_strategy(config.method)), count))


def say_what_is_kept(run: RunFolder, candidates: Mapping[str, Sequence[int]]) -> None:
    """Log how many rows are candidates and, where `less` has selected from all rows before, how many of its are."""
    corpus = Corpus(run.pool)
    union = {position for positions in candidates.values() for position in positions}
    logger.info("features: %d of %d pool rows are candidates", len(union), corpus.num_rows)
    rows = corpus.column("row")
    for target, positions in candidates.items():
        kept = {rows[position] for position in positions}
        for name, selected in _selected_from_all(run, target):
            share = 100 * len(kept & selected) / len(selected)
            logger.info(
                "features %s: the candidates hold %.1f %% of the %d rows of %s, which was selected from all rows",
                target,
                share,
                len(selected),
                name,
            )


def _selected_from_all(run: RunFolder, target: str) -> Iterator[tuple[str, set[int]]]:
    """The target's selections by `less` in which every row had a score: name and rows."""
    for path in sorted(run.selection(target).parent.glob("*.json")):
        facts = read_record(path).facts
        by_less = facts.get("settings", {}).get("method") == "less"
        if by_less and "num_candidates" not in facts and facts.get("rows"):
            yield path.stem, set(facts["rows"])
