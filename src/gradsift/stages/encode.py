"""The encode stage: the pool and the targets, read, encoded and written to the run folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from gradsift.data import BadRow, Example, SourceConfig, read_rows, source_fingerprint
from gradsift.encoding import (
    PROMPTS_FILE,
    SET_ASIDE_FILE,
    Corpus,
    EncodedRow,
    Encoder,
    EncodingConfig,
    SetAside,
    mostly_shown,
    write_corpus,
)
from gradsift.errors import DataError, RunFolderError
from gradsift.machine import Progress, RunFolder, write_json
from gradsift.model import ModelConfig, load_encoder
from gradsift.stages.sources import (
    base_weights,
    encoding_files,
    examples_fingerprint,
    require_same_base,
    require_same_encoding,
    require_same_examples,
)
from gradsift.tasks import EVALUATION_KEYS, TargetConfig, target_examples

logger = logging.getLogger(__name__)

CHUNK = 1000


class EncodeStage:
    """Encodes what isn't encoded yet; the tokenizer is loaded when the first row needs it."""

    def __init__(self, run: RunFolder, model: ModelConfig, encoding: EncodingConfig, seed: int) -> None:
        self._run, self._model, self._encoding, self._seed = run, model, encoding, seed
        self._encoder: Encoder | None = None

    def pool(self, sources: Sequence[SourceConfig]) -> Corpus:
        """The encoded pool. Raises DataError where no row of it can be used."""
        fingerprints = {source.name: source_fingerprint(source) for source in sources}
        if Corpus.is_finished(self._run.pool):
            corpus = self._unchanged(self._run.pool)
            _require_same_files(corpus, fingerprints)
            require_same_base(corpus, base_weights(self._model))
            return corpus
        rows = (row for source in sources for row in read_rows(source, self._seed))
        facts = {"sources": fingerprints, "base_model": base_weights(self._model)}
        corpus = self._write(self._run.pool, "encode pool", rows, facts)
        _warn_of_bad_rows(corpus)
        if corpus.num_rows == 0:
            raise DataError(f"no row of the pool can be used{_reasons(corpus)}; see {corpus.folder / SET_ASIDE_FILE}")
        return corpus

    def target(self, config: TargetConfig) -> Corpus:
        """The encoded examples of a target. Raises DataError where there are none.

        Examples are few and each may be a subtask's only one: a long one loses its beginning, not its answer. Deviates
        from the authors' code where that has no answer left, and so no loss.
        """
        folder = self._run.target(config.name)
        settings = config.model_dump(mode="json", exclude=EVALUATION_KEYS)
        if Corpus.is_finished(folder):
            corpus = self._unchanged(folder)
            _require_same_target(corpus, settings)
            require_same_examples(corpus, config.name, target_examples(config, self._seed))
            return corpus
        examples = target_examples(config, self._seed)
        if not examples:
            raise DataError(f"target {config.name} has no examples", config.path)
        write_json(folder / PROMPTS_FILE, [self._prompt(example) for example in examples])
        facts = {"settings": settings, "examples": examples_fingerprint(examples)}
        corpus = self._write(folder, f"encode target {config.name}", examples, facts, keep_answers=True)
        if corpus.num_rows == 0:
            raise DataError(f"no example of target {config.name} can be used{_reasons(corpus)}", config.path)
        return corpus

    def _prompt(self, example: Example) -> dict[str, Any]:
        encoder = self._ready_encoder()
        if isinstance(encoder.render(example), SetAside):
            return {"id": example.id, "subtask": example.subtask, "prompt": None, "completion": None}
        prompt, completion = encoder.prompt_and_completion(example)
        return {"id": example.id, "subtask": example.subtask, "prompt": prompt, "completion": completion}

    def _write(
        self,
        folder: Path,
        label: str,
        rows: Iterable[Example | BadRow],
        facts: dict[str, Any],
        keep_answers: bool = False,
    ) -> Corpus:
        encoder = self._ready_encoder()
        with Progress(label, None) as progress:
            results = mostly_shown(_encoded(encoder, rows, keep_answers, progress), encoder.template.name)
            made_with = {"encoding": encoder.meaning(), "encoding_files": self._files}
            return write_corpus(folder, results, {**facts, **made_with})

    def _unchanged(self, folder: Path) -> Corpus:
        """A finished corpus. Raises RunFolderError where it, or what its rows were encoded with, has changed."""
        corpus = Corpus(folder)
        corpus.require_whole()
        require_same_encoding(corpus, self._files, lambda: self._ready_encoder().meaning())
        return corpus

    @cached_property
    def _files(self) -> dict[str, str] | None:
        return encoding_files(self._model, self._encoding)

    def _ready_encoder(self) -> Encoder:
        if self._encoder is None:
            self._encoder = load_encoder(self._model, self._encoding)
        return self._encoder


def _encoded(
    encoder: Encoder, rows: Iterable[Example | BadRow], keep_answers: bool, progress: Progress
) -> Iterator[EncodedRow | SetAside]:
    """A result a row, in their order."""
    stream = iter(rows)
    while chunk := list(islice(stream, CHUNK)):
        results = encoder.encode([row for row in chunk if isinstance(row, Example)], keep_answers)
        encoded = iter(results)
        yield from (as_set_aside(row) if isinstance(row, BadRow) else next(encoded) for row in chunk)
        progress.advance(len(chunk), sum(row.num_tokens for row in results if isinstance(row, EncodedRow)))


def as_set_aside(row: BadRow) -> SetAside:
    """A row that can't be read, as one that no gradient can be taken of."""
    return SetAside(row.id, row.source, row.row, row.reason, row.place)


def _warn_of_bad_rows(corpus: Corpus) -> None:
    path = corpus.folder / SET_ASIDE_FILE
    with path.open(encoding="utf-8") as file:
        bad = [record for record in map(json.loads, file) if "place" in record]
    if bad:
        logger.warning(
            "encode pool: %d of %d rows can't be read and are set aside (%s); the first is %s: %s",
            len(bad),
            corpus.num_read,
            path,
            bad[0]["place"],
            bad[0]["reason"],
        )


def _require_same_files(corpus: Corpus, fingerprints: dict[str | None, str]) -> None:
    before = corpus.manifest["sources"]
    for name, now in fingerprints.items():
        if before.get(name) != now:
            raise RunFolderError(
                f"pool source {name} has changed since {corpus.folder} was made from it: use another run_dir, or put "
                "the file back as it was"
            )


def _require_same_target(corpus: Corpus, settings: dict[str, Any]) -> None:
    for key, before in corpus.manifest["settings"].items():
        if settings.get(key) != before:
            raise RunFolderError(
                f"target {settings['name']} was encoded in {corpus.folder} with {key}={before!r}, now "
                f"{settings.get(key)!r}: give the new target another name"
            )


def _reasons(corpus: Corpus) -> str:
    reasons = corpus.manifest["set_aside"]
    listed = ", ".join(
        f"{count} × {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:3]
    )
    return f": {listed}" if listed else ""
