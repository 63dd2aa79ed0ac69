"""BIG-Bench Hard: 27 reasoning tasks; gives back three worked examples of each, and the test questions.

A test question is asked as in the authors' evaluation code with its chat format: the task's description, three
worked examples, the question, and the assistant's "A:"; the answer is what stands between "the answer is" and the
next full stop, and the overall figure is the mean over tasks. (Their released script calls that code without the
chat format.) Deviates from it in that "the answer is" needs no "So" before it and may be in any case.
"""

from __future__ import annotations

import re
import string
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gradsift.data import Example
from gradsift.tasks.files import Row, held_out_rows, is_json, json_object, target_files, validation_rows
from gradsift.tasks.prompt import Prompt, as_examples, parted
from gradsift.tasks.question import EvaluationProtocol, Question, Scores, Shots, ShotText, in_natural_order, numbered

PREFILL = "A:"
LAYOUT = ("bbh-three-shot.json",)
TEST_LAYOUT = ("bbh/*.json",)
NUM_SHOTS = 3
QUESTION_MARK = "Q: "
ANSWER_MARK = "\nA: "
ANSWER_PATTERN = re.compile(r"the answer is (.*?)\.", re.IGNORECASE)
PUNCTUATION = str.maketrans("", "", string.punctuation)


class Shot(NamedTuple):
    """A worked example: what is asked, and the reasoning that ends in the answer."""

    question: str
    reasoning: str


class _WorkedExample(NamedTuple):
    subtask: str
    description: str
    shot: Shot
    id: str | None


def validation_examples(path: Path, target: str, hold_out: int = 0) -> list[Example]:
    """The worked examples in `path`, in file order; the others of its subtask come first in its prompt.

    Those held out stand in no prompt.
    """
    kept, _ = _parted(path, hold_out)
    return as_examples(_prompts(kept, kept), target, path)


def held_out_examples(path: Path, target: str, hold_out: int) -> list[Example]:
    """The last `hold_out` worked examples of every task; those that are selected for come first in their prompts."""
    kept, held = _parted(path, hold_out)
    return as_examples(_prompts(held, kept), target, path)


def _parted(path: Path, hold_out: int) -> tuple[list[_WorkedExample], list[_WorkedExample]]:
    worked = [example for file in target_files(path, "bbh", LAYOUT) for example in _worked_examples(file)]
    return parted(worked, lambda example: example.subtask, hold_out, path)


def test_questions(path: Path, shots_path: Path) -> list[Question]:
    """The test questions in `path`, each with the worked examples of its task in `shots_path`."""
    worked = [example for file in target_files(shots_path, "bbh", LAYOUT) for example in _worked_examples(file)]
    shots = Shots((ShotText(example.subtask, example.id, _shot(example.shot)) for example in worked), shots_path)
    descriptions = {example.subtask: example.description for example in worked}
    files = target_files(path, "bbh", TEST_LAYOUT, without=LAYOUT)
    asked = [item for file in files for item in _test_items(file, shots_path, descriptions)]
    names = numbered(((item.subtask, item.id) for item in asked), "test")
    return in_natural_order(
        (_asked(name, item, shots.of(item.subtask)) for name, item in zip(names, asked, strict=True)), path
    )


def extracted_answer(output: str) -> str:
    """What an output gives as its answer: from "the answer is" to the full stop, else all of it."""
    found = ANSWER_PATTERN.search(output)
    return found.group(1).strip() if found else output.strip()


def _judge(question: Question, output: str) -> Scores:
    """`exact_match` is the protocol's, blind to case and punctuation, `exact_match_verbatim` to neither.

    They differ most on Dyck languages, whose answers are nothing but punctuation: there the protocol's counts
    little more than the spaces.
    """
    answer = extracted_answer(output)
    return {
        "exact_match": float(any(_plain(answer) == _plain(gold) for gold in question.answers)),
        "exact_match_verbatim": float(answer in question.answers),
    }


def _plain(text: str) -> str:
    return text.lower().translate(PUNCTUATION)


EVALUATION = EvaluationProtocol(
    judge=_judge, num_shots=NUM_SHOTS, stop="\n\n", max_new_tokens=512, averaged_over="subtasks"
)


def bbh_prompt(description: str, shots: Sequence[Shot], question: str) -> str:
    """The user turn: the task's description, the worked examples, and the question."""
    return "".join([_heading(description), *map(_shot, shots), f"{QUESTION_MARK}{question}"])


def _heading(description: str) -> str:
    return f"{description.strip()}\n\n"


def _shot(shot: Shot) -> str:
    return f"{QUESTION_MARK}{shot.question}{ANSWER_MARK}{shot.reasoning}\n\n"


class _TestItem(NamedTuple):
    subtask: str
    description: str
    question: str
    answer: str
    reasoning: str | None
    id: str | None


def _asked(name: str, item: _TestItem, shots: tuple[str, ...]) -> Question:
    return Question(
        id=name,
        subtask=item.subtask,
        heading=_heading(item.description),
        shots=shots,
        question=f"{QUESTION_MARK}{item.question}",
        prefill=PREFILL,
        answers=(item.answer,),
        completion=None if item.reasoning is None else f" {item.reasoning}",
    )


def _test_items(file: Path, shots_path: Path, descriptions: dict[str, str]) -> list[_TestItem]:
    if is_json(file):
        return _authors_items(file, descriptions)
    return [_test_item(row) for row in held_out_rows(file, shots_path)]


def _test_item(row: Row) -> _TestItem:
    reasoning = row.text("cot") if row.fields.get("cot") is not None else None
    return _TestItem(
        row.text("subtask"), row.text("description"), row.text("prompt"), row.text("answer"), reasoning, row.id
    )


def _authors_items(file: Path, descriptions: dict[str, str]) -> list[_TestItem]:
    """Items of a task's file, `{"examples": [{"input", "target"}]}`; the task is the file's name."""
    task = file.name.partition(".")[0]
    whole = Row(json_object(file), file)
    if task not in descriptions:
        raise whole.error(f"the worked examples know no task {task!r}; known: {', '.join(sorted(descriptions))}")
    items = []
    for index, fields in enumerate(whole.items("examples")):
        if not isinstance(fields, dict):
            raise whole.error(f"example {index} is {fields!r}, not an object")
        row = Row(fields, file, label=f"example {index}")
        items.append(_TestItem(task, descriptions[task], row.text("input"), row.text("target"), None, None))
    return items


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


def _prompts(asked: list[_WorkedExample], shown: list[_WorkedExample]) -> list[Prompt]:
    by_subtask = defaultdict(list)
    for example in shown:
        by_subtask[example.subtask].append(example)
    return [_prompt(example, by_subtask[example.subtask]) for example in asked]


def _prompt(example: _WorkedExample, subtask: list[_WorkedExample]) -> Prompt:
    others = [other.shot for other in subtask if other is not example]
    question = bbh_prompt(example.description, others, example.shot.question)
    return Prompt(example.subtask, question, PREFILL, f" {example.shot.reasoning}", example.id)
