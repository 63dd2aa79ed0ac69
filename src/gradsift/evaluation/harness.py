"""lm-evaluation-harness on a model in memory; gives back its results and its record of every sample.

An extra: `pip install gradsift[eval]`. Tasks are those of its own collection by name (their data come from the hub), or
task files in a folder of the user's, which may read local data and show prompts word for word.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from gradsift.encoding import Encoder
from gradsift.errors import ConfigError, nearest

logger = logging.getLogger(__name__)

AUTO_ROWS = 8
UNREACHABLE = (
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
    "DatasetNotFoundError",
    "HfHubHTTPError",
    "ConnectionError",
    "ConnectError",
)
"""Names of the errors that the hub's clients raise where it can't be reached; they come from four packages."""


class HarnessConfig(BaseModel):
    """What lm-evaluation-harness is asked to do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: list[str] = Field(min_length=1)
    """Names of its tasks, groups or tags."""
    include_path: str | None = None
    """Folder of further task files (YAML)."""
    num_fewshot: int | None = Field(None, ge=0)
    """None: as the task says."""
    limit: int | None = Field(None, ge=1)
    """The first samples of each task alone."""


@dataclass(frozen=True)
class HarnessOutcome:
    """What lm-evaluation-harness found."""

    results: Mapping[str, Mapping[str, Any]]
    """By task: its metrics as it names them ("acc,none")."""
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    """By task: each sample's document, prompt, answer and metrics."""
    version: str


def require_harness(config: HarnessConfig) -> None:
    """Raise ConfigError where lm-evaluation-harness isn't installed or knows no such task: before hours of training."""
    _task_manager(config)


def run_harness(model: nn.Module, encoder: Encoder, config: HarnessConfig, batch_size: int | str) -> HarnessOutcome:
    """The model, in evaluation mode on its device, on the config's tasks; prompts are passed as the tasks word them.

    Raises ConfigError where lm-evaluation-harness isn't installed, a task is unknown, or the hub can't be reached.
    """
    from gradsift.evaluation.context import context_length

    manager = _task_manager(config)
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    wrapped = HFLM(
        pretrained=model.get_base_model() if hasattr(model, "get_base_model") else model,  # type: ignore[operator]
        tokenizer=copy.deepcopy(encoder.tokenizer),
        batch_size=AUTO_ROWS if batch_size == "auto" else batch_size,
        max_length=context_length(model, encoder),
    )
    with _hub_errors(config):
        found = lm_eval.simple_evaluate(
            model=wrapped,
            tasks=list(config.tasks),
            task_manager=manager,
            num_fewshot=config.num_fewshot,
            limit=config.limit,
            bootstrap_iters=0,
        )
    assert found is not None, "lm-evaluation-harness gives results on its first rank alone"
    return HarnessOutcome(found["results"], found["samples"], lm_eval.__version__)


def _task_manager(config: HarnessConfig) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"evaluate.harness needs lm-evaluation-harness ({error}): pip install 'gradsift[eval]'"
        ) from error
    if config.include_path is not None and not Path(config.include_path).expanduser().is_dir():
        raise ConfigError(f"evaluate.harness.include_path: there is no folder {config.include_path}")
    local = None if config.include_path is None else str(Path(config.include_path).expanduser())
    if local is not None:
        # The index of all its own tasks takes ten seconds: not where none is asked for.
        manager = TaskManager(include_path=local, include_defaults=False)
        if set(config.tasks) <= set(manager.all_subtasks):
            return manager
    manager = TaskManager(include_path=local)
    for task in config.tasks:
        if task not in manager.task_index:
            raise ConfigError(f"evaluate.harness.tasks: unknown task {task!r}{nearest(task, manager.all_tasks)}")
    return manager


@contextmanager
def _hub_errors(config: HarnessConfig) -> Iterator[None]:
    """Turn a hub that can't be reached into one line."""
    try:
        yield
    except Exception as error:
        names = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}
        if names.isdisjoint(UNREACHABLE):
            raise
        raise ConfigError(
            f"evaluate.harness: the data of {', '.join(config.tasks)} can't be had from the hub "
            f"({' '.join(str(error).split())[:200]}); give task files on local data by include_path"
        ) from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
