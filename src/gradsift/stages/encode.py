"""The encode stage: the pool and the targets, read, encoded and written to the run folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gradsift.artifact import write_json
from gradsift.corpus import Corpus, write_corpus
from gradsift.data import Example
from gradsift.encoding import EncodedRow, Encoder, EncodingConfig, SetAside
from gradsift.errors import ConfigError, DataError, RunFolderError
from gradsift.modeling import ModelConfig, load_tokenizer
from gradsift.runfolder import RunFolder
from gradsift.runtime import Progress
from gradsift.source_settings import SourceConfig
from gradsift.sources import read_examples, source_fingerprint
from gradsift.tasks import TASKS, TargetTask
from gradsift.tasks.conversation import OWN_PROTOCOLS, OwnMetric, asked_for_loss, held_out_questions
from gradsift.tasks.prompt import parted
from gradsift.tasks.question import EvaluationProtocol, Question

logger = logging.getLogger(__name__)

CHUNK = 1000
PROMPTS_FILE = "prompts.json"
EVALUATION_KEYS = {"test_path", "test_limit", "metric", "max_new_tokens", "num_shots"}
"""Keys of a target that its encoded examples don't depend on: they may change between two calls."""


class TargetConfig(BaseModel):
    """A target: a built-in task, or any file of examples; and what is held out to evaluate on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    task: Literal["mmlu", "tydiqa", "bbh"] | None = None
    path: str
    subtask_column: str | None = None
    """Column that names an example's subtask; None: the whole file is one subtask."""
    format: str | None = None
    columns: dict[str, str] = {}
    split: str | None = None
    limit: int | None = None
    test_path: str | None = None
    """Held-out examples, laid out as those in `path`. None: a built-in task's are in `path` too, a file has none."""
    test_limit: int | None = Field(None, ge=1)
    """Held-out questions per subtask; None: evaluate.limit."""
    hold_out: int = Field(0, ge=0)
    """Examples of every subtask, its last, that are kept from the selection: their answer loss is taken besides."""
    metric: OwnMetric = "loss"
    """How an answer to a held-out example is judged; `loss`: not at all, the loss of the right answer alone."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Tokens of a generated answer to a held-out question; None: evaluate.max_new_tokens, else the protocol's."""
    num_shots: int | None = Field(None, ge=0)
    """Worked examples before a held-out question; None: evaluate.num_shots, else the protocol's."""

    @property
    def has_held_out(self) -> bool:
        """Whether there is something to evaluate on."""
        return self.task is not None or self.test_path is not None or self.hold_out > 0

    @model_validator(mode="after")
    def _file_keys_need_a_file(self) -> TargetConfig:
        keys = ("subtask_column", "format", "columns", "split", "limit")
        given = [key for key in keys if getattr(self, key)]
        if self.task and given:
            raise ValueError(f"task {self.task} reads its own layout: leave out {', '.join(given)}")
        return self

    @model_validator(mode="after")
    def _metric_needs_held_out_examples(self) -> TargetConfig:
        if self.metric == "loss":
            return self
        if self.task:
            raise ValueError(f"task {self.task} has a metric of its own: leave out metric")
        if not self.has_held_out:
            raise ValueError(f"metric {self.metric} needs held-out examples: give test_path, or hold_out")
        return self


class EncodeStage:
    """Encodes what isn't encoded yet; the tokenizer is loaded when the first row needs it."""

    def __init__(self, run: RunFolder, model: ModelConfig, encoding: EncodingConfig, seed: int) -> None:
        self._run, self._model, self._encoding, self._seed = run, model, encoding, seed
        self._encoder: Encoder | None = None

    def pool(self, sources: Sequence[SourceConfig]) -> Corpus:
        """The encoded pool. Raises DataError where no row of it can be used."""
        fingerprints = {source.name: source_fingerprint(source) for source in sources}
        if Corpus.is_finished(self._run.pool):
            corpus = Corpus(self._run.pool)
            _require_same_files(corpus, fingerprints)
            return corpus
        examples = (example for source in sources for example in read_examples(source, self._seed))
        corpus = self._write(self._run.pool, "encode pool", examples, {"sources": fingerprints})
        if corpus.num_rows == 0:
            raise DataError(f"no row of the pool can be used{_reasons(corpus)}; see {corpus.folder}/set_aside.jsonl")
        return corpus

    def target(self, config: TargetConfig) -> Corpus:
        """The encoded examples of a target. Raises DataError where there are none.

        Examples are few and each may be a subtask's only one: a long one loses its beginning, not its answer. Deviates
        from the authors' code where that has no answer left, and so no loss.
        """
        folder = self._run.target(config.name)
        settings = config.model_dump(mode="json", exclude=EVALUATION_KEYS)
        if Corpus.is_finished(folder):
            corpus = Corpus(folder)
            _require_same_target(corpus, settings)
            return corpus
        examples = target_examples(config, self._seed)
        if not examples:
            raise DataError(f"target {config.name} has no examples", config.path)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / PROMPTS_FILE, [self._prompt(example) for example in examples])
        corpus = self._write(
            folder, f"encode target {config.name}", examples, {"settings": settings}, keep_answers=True
        )
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
        examples: Iterable[Example],
        facts: dict[str, Any],
        keep_answers: bool = False,
    ) -> Corpus:
        encoder = self._ready_encoder()
        with Progress(label, None) as progress:
            rows = _encoded(encoder, examples, keep_answers, progress)
            return write_corpus(folder, rows, {**facts, "encoding": encoder.meaning()})

    def _ready_encoder(self) -> Encoder:
        if self._encoder is None:
            self._encoder = Encoder(load_tokenizer(self._model), self._encoding)
        return self._encoder


def _encoded(
    encoder: Encoder, examples: Iterable[Example], keep_answers: bool, progress: Progress
) -> Iterator[EncodedRow | SetAside]:
    stream = iter(examples)
    while chunk := list(islice(stream, CHUNK)):
        results = encoder.encode(chunk, keep_answers)
        yield from results
        progress.advance(len(chunk), sum(row.num_tokens for row in results if isinstance(row, EncodedRow)))


def target_examples(config: TargetConfig, seed: int) -> list[Example]:
    """The examples that are selected for, each with its subtask."""
    if config.task is not None:
        return TASKS[config.task].validation_examples(Path(config.path).expanduser(), config.name, config.hold_out)
    return _parted(config, seed)[0]


def _parted(config: TargetConfig, seed: int) -> tuple[list[Example], list[Example]]:
    """A file's examples: those selected for, and those held out."""
    examples = list(read_examples(_source(config, config.path, config.limit), seed))
    return parted(examples, lambda example: example.subtask or config.name, config.hold_out, Path(config.path))


def held_out(config: TargetConfig) -> tuple[list[Question], EvaluationProtocol]:
    """The held-out questions of a target in the natural order of their ids, and how they are asked and judged.

    Raises ConfigError where the target has none, DataError where they can't be read.
    """
    if config.task is not None:
        return _held_out_of_task(TASKS[config.task], config)
    if not config.has_held_out:
        raise ConfigError(
            f"target {config.name} has no held-out examples to evaluate on: give it a test_path, or hold_out"
        )
    examples = _parted(config, seed=0)[1] if config.hold_out else []
    if config.test_path is not None:
        # No limit: it is of the examples selected for; test_limit is of these.
        examples += read_examples(_source(config, config.test_path, limit=None), seed=0)
    place = Path(config.test_path or config.path)
    return held_out_questions(examples, config.name, place), OWN_PROTOCOLS[config.metric]


def _held_out_of_task(task: TargetTask, config: TargetConfig) -> tuple[list[Question], EvaluationProtocol]:
    path = Path(config.path).expanduser()
    questions = task.test_questions(Path(config.test_path or config.path).expanduser(), path)
    if config.hold_out:
        questions += map(asked_for_loss, task.held_out_examples(path, config.name, config.hold_out))
    return questions, task.EVALUATION


def _source(config: TargetConfig, path: str, limit: int | None) -> SourceConfig:
    columns = dict(config.columns)
    if config.subtask_column is not None:
        columns["subtask"] = config.subtask_column
    return SourceConfig(
        name=config.name, path=path, format=config.format, columns=columns, split=config.split, limit=limit
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
        if settings[key] != before:
            raise RunFolderError(
                f"target {settings['name']} was encoded in {corpus.folder} with {key}={before!r}, now "
                f"{settings[key]!r}: give the new target another name"
            )


def _reasons(corpus: Corpus) -> str:
    reasons = corpus.manifest["set_aside"]
    listed = ", ".join(
        f"{count} × {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:3]
    )
    return f": {listed}" if listed else ""
