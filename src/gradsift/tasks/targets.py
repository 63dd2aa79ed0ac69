"""Targets: the `targets` of the config, their examples to select for, and the questions held out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gradsift.data import Example, SourceConfig, read_examples
from gradsift.errors import ConfigError
from gradsift.tasks.builtin import TASKS, TargetTask
from gradsift.tasks.conversation import OWN_PROTOCOLS, OwnMetric, asked_for_loss, held_out_questions
from gradsift.tasks.prompt import parted
from gradsift.tasks.question import EvaluationProtocol, Question

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
    limit: int | None = Field(None, ge=1)
    """The first examples alone."""
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
        name=config.name,
        path=path,
        format=config.format,
        columns=columns,
        split=config.split,
        limit=limit,
        on_error="refuse",  # an example may be all that a subtask has
    )
