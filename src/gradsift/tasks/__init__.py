"""`TASKS`: the built-in target tasks by name; each is a module that gives back the examples of a target."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from gradsift.data import Example
from gradsift.tasks import bbh, mmlu, tydiqa


class TargetTask(Protocol):
    """What a task's module offers."""

    def validation_examples(self, path: Path, target: str) -> list[Example]:
        """The few-shot examples in `path`, in file order, each with its subtask and `target` as its source.

        `path` is a folder in the authors' layout, one of its files, or JSONL (its "val" rows). `DataError`
        where nothing is there, a row can't be used, or no row is left.
        """
        ...


TASKS: dict[str, TargetTask] = {"mmlu": mmlu, "tydiqa": tydiqa, "bbh": bbh}
