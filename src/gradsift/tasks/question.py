"""`Question`: one held-out item as a task words it, and `EvaluationProtocol`: how a task asks and judges."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gradsift.data import Message
from gradsift.errors import DataError

Scores = dict[str, float]
"""A metric's name and its value of one output, from 0 to 1; the first is the one that counts."""


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out item in the pieces that its prompt is joined from; each piece carries its own separators."""

    id: str
    subtask: str
    heading: str
    """What stands before the shots: the subject, the task's description, the instruction."""
    shots: tuple[str, ...]
    """Worked examples with their answers; a prompt takes the first of them."""
    question: str
    """What is asked; the user turn ends with it."""
    prefill: str
    """What opens the assistant turn and is given; may be empty."""
    answers: tuple[str, ...]
    """What is right, as the metric takes it; one of them is enough."""
    choices: tuple[str, ...] = ()
    """Completions chosen among by likelihood; empty: the answer is generated."""
    completion: str | None = None
    """The text whose loss is the answer loss; None where no such text is known."""
    history: tuple[Message, ...] = ()
    """The turns before the question."""
    passages: tuple[str, ...] = ()
    """Texts inside the shots and the question that the protocol shortens."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Definitions of the tools that may be called."""
    reply: Message | None = None
    """The turn that is right, where it is more than the text in `completion`: it calls tools, or reasons."""

    def messages(self, num_shots: int) -> list[Message]:
        """The conversation up to the assistant turn, with the first `num_shots` shots."""
        text = "".join([self.heading, *self.shots[:num_shots], self.question])
        turn: list[Message] = [{"role": "user", "content": text}] if text else []
        return [*self.history, *turn]

    def with_passages(self, shortened: Callable[[str], str]) -> Question:
        """The question with each of its passages, where it stands, as `shortened` gives it back."""

        def piece(text: str) -> str:
            for passage in self.passages:
                text = text.replace(passage, shortened(passage))
            return text

        return replace(self, shots=tuple(map(piece, self.shots)), question=piece(self.question))


@dataclass(frozen=True, slots=True)
class EvaluationProtocol:
    """How the questions of a task are asked, and how an output becomes scores."""

    judge: Callable[[Question, str], Scores] | None
    """None: nothing is answered, the answer loss alone is taken."""
    num_shots: int = 0
    stop: str | None = None
    """Generation ends before this text; None: at the end mark alone."""
    max_new_tokens: int = 256
    passage_tokens: int | None = None
    """Tokens kept of a passage."""
    averaged_over: Literal["questions", "subtasks"] = "questions"
    """What the overall figure is the mean of."""


class ShotText(NamedTuple):
    """A validation example as the prompts of its subtask show it."""

    subtask: str
    id: str | None
    text: str


class Shots:
    """The shots of every subtask, in the natural order of their ids."""

    def __init__(self, shots: Iterable[ShotText], path: Path) -> None:
        listed = list(shots)
        names = numbered(((shot.subtask, shot.id) for shot in listed), "val")
        self._path = path
        self._texts: dict[str, list[str]] = defaultdict(list)
        for _, shot in sorted(zip(names, listed, strict=True), key=lambda pair: natural_key(pair[0])):
            self._texts[shot.subtask].append(shot.text)

    def of(self, subtask: str) -> tuple[str, ...]:
        """The shots of a subtask; `DataError` where it has none, for its prompts would be others than its fellows'."""
        if subtask not in self._texts:
            raise DataError(f"no validation example of {subtask!r}, whose held-out items need shots", self._path)
        return tuple(self._texts[subtask])


def numbered(rows: Iterable[tuple[str, str | None]], split: str) -> list[str]:
    """An id per (subtask, id): the id, else `subtask/split/index within the subtask`."""
    num_seen: Counter[str] = Counter()
    names = []
    for subtask, name in rows:
        names.append(name or f"{subtask}/{split}/{num_seen[subtask]}")
        num_seen[subtask] += 1
    return names


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts `law/10` after `law/9`."""
    parts = re.split(r"(\d+)", text)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)


def in_natural_order(questions: Iterable[Question], path: Path) -> list[Question]:
    """The questions by id, so that the order of files and rows doesn't matter.

    `DataError`, naming `path`, where there is none or an id stands twice.
    """
    by_id: dict[str, Question] = {}
    for question in questions:
        if question.id in by_id:
            raise DataError(f"two held-out items have the id {question.id!r}; ids must differ", path)
        by_id[question.id] = question
    if not by_id:
        raise DataError("no held-out item; give at least one", path)
    return [by_id[name] for name in sorted(by_id, key=natural_key)]
