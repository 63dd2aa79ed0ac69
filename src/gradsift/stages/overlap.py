"""Overlap of the pool with a target's items: found once, and kept beside the target for every method."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gradsift.artifact import fingerprint, read_json, write_json
from gradsift.corpus import Corpus
from gradsift.data import Example
from gradsift.errors import DataError
from gradsift.overlap import ItemNgrams
from gradsift.runfolder import RunFolder
from gradsift.runtime import Progress
from gradsift.source_settings import SourceConfig
from gradsift.sources import read_examples
from gradsift.stages.encode import TargetConfig, held_out, target_examples
from gradsift.tasks.question import Question

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PoolOverlap:
    """Finds the pool's rows that give away a target's items: its validation examples and held-out questions."""

    run: RunFolder
    pool: Sequence[SourceConfig]
    size: int
    """Words in a row that a row must share."""
    seed: int

    def of(self, target: TargetConfig) -> dict[str, Any]:
        """The rows' positions in the pool as it was read (`rows`), and what they come from (`inputs`)."""
        items = list(_items(target, self.seed))
        corpus = Corpus(self.run.pool)
        inputs = fingerprint([self.size, corpus.manifest["fingerprint"], items])
        path = self.run.overlap(target.name)
        if path.is_file():
            before: dict[str, Any] = read_json(path)
            if before["inputs"] == inputs:
                return before
        found = self._rows(corpus, ItemNgrams(items, self.size), target.name)
        facts = {"overlap_ngrams": self.size, "num_items": len(items), "inputs": inputs, "rows": found}
        write_json(path, facts)
        return facts

    def _rows(self, corpus: Corpus, ngrams: ItemNgrams, target: str) -> list[int]:
        if not len(ngrams):
            return []
        table = corpus.table(["source", "id", "row"])
        keys = zip(table["source"].to_pylist(), table["id"].to_pylist(), strict=True)
        row_of = dict(zip(keys, table["row"].to_pylist(), strict=True))
        with Progress(f"overlap {target}", corpus.num_read) as progress:
            found = [(row.source, row.id) for row in self._read(progress) if ngrams.stand_in(row.dialogue)]
        return sorted(row_of[key] for key in found if key in row_of)

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
    turns = [message["content"] for message in question.history if message["role"] != "system"]
    answer = question.completion or "".join(question.answers[:1])
    return "\n".join([*turns, question.heading, question.question, answer])
