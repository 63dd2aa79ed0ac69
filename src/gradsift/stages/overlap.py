"""Overlap of the pool with a target's items: found once, and kept beside the target for every method."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradsift.data import Example, SourceConfig, read_examples, said
from gradsift.encoding import Corpus
from gradsift.errors import DataError
from gradsift.machine import Progress, RunFolder, fingerprint, read_record, write_record
from gradsift.tasks import Question, TargetConfig, held_out, target_examples
from gradsift.texts import ItemNgrams, words_in

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PoolOverlap:
    """Finds the pool's rows that give away targets' items: its validation examples and held-out questions."""

    run: RunFolder
    pool: Sequence[SourceConfig]
    size: int
    """Words in a row that a row must share."""
    seed: int

    def of(self, targets: Sequence[TargetConfig]) -> dict[str, dict[str, Any]]:
        """By target: the rows' positions in the pool as it was read (`rows`), and what they come from (`inputs`).

        The pool is read once for all targets that were not compared with it before.
        """
        corpus = Corpus(self.run.pool)
        facts, missing = {}, {}
        for target in targets:
            items = list(_items(target, self.seed))
            inputs = fingerprint([self.size, corpus.manifest["fingerprint"], items])
            facts[target.name] = self._before(target.name)
            if facts[target.name].get("inputs") != inputs:
                facts[target.name] = {"overlap_ngrams": self.size, "num_items": len(items), "inputs": inputs}
                missing[target.name] = ItemNgrams(items, self.size)
        for name, rows in self._rows(corpus, missing).items():
            facts[name]["rows"] = rows
            write_record(self.run.overlap(name), facts[name])
        return facts

    def _before(self, target: str) -> dict[str, Any]:
        path = self.run.overlap(target)
        return read_record(path, ("inputs", "rows")).facts if path.is_file() else {}

    def _rows(self, corpus: Corpus, ngrams: Mapping[str, ItemNgrams]) -> dict[str, list[int]]:
        """The rows of each target, from one pass over the pool; none where no target has a run."""
        found: dict[str, list[tuple[str, str]]] = {name: [] for name in ngrams}
        if not any(map(len, ngrams.values())):
            return {name: [] for name in ngrams}
        with Progress(f"overlap {', '.join(ngrams)}", corpus.num_read) as progress:
            for row in self._read(progress):
                row_words = words_in(row.dialogue)
                for name, runs in ngrams.items():
                    if runs.stand_in(row_words):
                        found[name].append((row.source, row.id))
        row_of = dict(zip(corpus.keys, corpus.column("row"), strict=True))
        return {name: sorted(row_of[key] for key in rows if key in row_of) for name, rows in found.items()}

    def _read(self, progress: Progress) -> Iterator[Example]:
        for source in self.pool:
            for example in read_examples(source, self.seed):
                yield example
                progress.advance(1)


def _items(target: TargetConfig, seed: int) -> Iterator[str]:
    yield from (example.dialogue for example in target_examples(target, seed))
    if not target.has_held_out:
        return
    try:
        questions, _ = held_out(target)
    except DataError as error:
        logger.warning("select %s: rows are compared with its validation examples alone: %s", target.name, error)
        return
    yield from map(_asked_and_answered, questions)


def _asked_and_answered(question: Question) -> str:
    """The item with its heading, as the validation examples have it, but without shots."""
    turns = [said(message) for message in question.history if message["role"] != "system"]
    answer = question.completion or "".join(question.answers[:1])
    return "\n".join([*turns, question.heading, question.question, answer])
