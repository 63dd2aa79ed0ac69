"""BIG-Bench Hard: 27 reasoning tasks; gives back three worked examples of each, each after the other two."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gradsift.data import Example
from gradsift.tasks.files import Row, is_json, json_object, target_files, validation_rows
from gradsift.tasks.prompt import Prompt, as_examples

PREFILL = "A:"
LAYOUT = ("bbh-three-shot.json",)
NUM_SHOTS = 3
QUESTION_MARK = "Q: "
ANSWER_MARK = "\nA: "


class Shot(NamedTuple):
    """A worked example: what is asked, and the reasoning that ends in the answer."""

    question: str
    reasoning: str


class _WorkedExample(NamedTuple):
    subtask: str
    description: str
    shot: Shot
    id: str | None


def validation_examples(path: Path, target: str) -> list[Example]:
    """The worked examples in `path`, in file order; the others of its subtask come first in its prompt."""
    worked = [example for file in target_files(path, "bbh", LAYOUT) for example in _worked_examples(file)]
    return as_examples(_prompts(worked), target, path)


def bbh_prompt(description: str, shots: Sequence[Shot], question: str) -> str:
    """The user turn: the task's description, the worked examples, and the question."""
    parts = [f"{QUESTION_MARK}{shot.question}{ANSWER_MARK}{shot.reasoning}" for shot in shots]
    return "\n\n".join([description.strip(), *parts, f"{QUESTION_MARK}{question}"])


def parse_shots(text: str) -> tuple[str, list[Shot]]:
    """The description and the three shots of a task's text in the authors' file.

    A blank line parts the shots, so the description may hold some and a shot may not. `ValueError`, saying
    what is amiss, where the last three parts aren't shots.
    """
    parts = text.split("\n\n")
    if len(parts) <= NUM_SHOTS:
        raise ValueError(f"{len(parts)} parts between blank lines; expected a description and three shots")
    return "\n\n".join(parts[:-NUM_SHOTS]), [_parse_shot(part) for part in parts[-NUM_SHOTS:]]


def _parse_shot(part: str) -> Shot:
    question, mark, reasoning = part.removeprefix(QUESTION_MARK).partition(ANSWER_MARK)
    if not part.startswith(QUESTION_MARK) or not mark or ANSWER_MARK in reasoning:
        raise ValueError(f"expected a shot 'Q: …' with one line 'A: …', not {part[:60]!r}")
    return Shot(question, reasoning)


def _worked_examples(file: Path) -> list[_WorkedExample]:
    if is_json(file):
        return _three_shot_examples(file)
    return [_worked_example(row) for row in validation_rows(file)]


def _three_shot_examples(file: Path) -> list[_WorkedExample]:
    """Examples of the authors' file, a text of description and shots per task."""
    whole = Row(json_object(file), file)
    examples = []
    for task in whole.fields:
        try:
            description, shots = parse_shots(whole.text(task))
        except ValueError as error:
            raise whole.error(f"task {task!r}: {error}") from error
        examples += [_WorkedExample(task, description, shot, None) for shot in shots]
    return examples


def _worked_example(row: Row) -> _WorkedExample:
    shot = Shot(row.text("prompt"), row.text("cot"))
    return _WorkedExample(row.text("subtask"), row.text("description"), shot, row.id)


def _prompts(worked: list[_WorkedExample]) -> list[Prompt]:
    by_subtask = defaultdict(list)
    for example in worked:
        by_subtask[example.subtask].append(example)
    return [_prompt(example, by_subtask[example.subtask]) for example in worked]


def _prompt(example: _WorkedExample, subtask: list[_WorkedExample]) -> Prompt:
    others = [other.shot for other in subtask if other is not example]
    question = bbh_prompt(example.description, others, example.shot.question)
    return Prompt(example.subtask, question, PREFILL, f" {example.shot.reasoning}", example.id)
