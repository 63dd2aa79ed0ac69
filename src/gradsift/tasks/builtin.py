"""`TASKS`: the built-in target tasks by name; each is a module that gives back a target's examples and questions."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from gradsift.data import Example
from gradsift.tasks import bbh, mmlu, tydiqa
from gradsift.tasks.question import EvaluationProtocol, Question


class TargetTask(Protocol):
    """What a task's module offers."""

    EVALUATION: EvaluationProtocol
    """How its held-out questions are asked and judged."""

    def validation_examples(self, path: Path, target: str, hold_out: int = 0) -> list[Example]:
        """The few-shot examples in `path`, in file order, each with its subtask and `target` as its source.

        All but the last `hold_out` of every subtask. `path` is a folder in the authors' layout, one of its files, or
        JSONL (its "val" rows). `DataError` where nothing is there, a row can't be used, or no row is left.
        """
        ...

    def held_out_examples(self, path: Path, target: str, hold_out: int) -> list[Example]:
        """The last `hold_out` few-shot examples of every subtask, in the form of the others."""
        ...

    def test_questions(self, path: Path, shots_path: Path) -> list[Question]:
        """The held-out questions in `path` in the natural order of their ids, each with its subtask's shots.

        The shots are the validation examples in `shots_path`, in the natural order of their ids, however many
        there are. `path` is as above, with the authors' test files and JSONL rows of split "test"; it may be the
        same. `DataError` where no question is there, a row can't be used, or a subtask has no shots' file.
        """
        ...


TASKS: dict[str, TargetTask] = {"mmlu": mmlu, "tydiqa": tydiqa, "bbh": bbh}
