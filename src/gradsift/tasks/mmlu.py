"""MMLU: multiple-choice questions of 57 subjects; gives back the five development questions of each."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from gradsift.data import Example
from gradsift.errors import DataError
from gradsift.tasks.files import Row, opened, target_files, validation_rows
from gradsift.tasks.prompt import Prompt, as_examples

PREFILL = "The answer is:"
LAYOUT = ("dev/*_dev.csv", "*_dev.csv")
DEV_SUFFIX = "_dev.csv"
NUM_CSV_FIELDS_AROUND_CHOICES = 2  # the question before them, the answer after them


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its choices in order, and the letter of the right one."""

    subject: str
    text: str
    choices: Sequence[str]
    answer: str
    id: str | None = None

    def fault(self) -> str | None:
        """What is wrong with it; None where nothing is."""
        letters = list(ascii_uppercase[: len(self.choices)])
        if not 2 <= len(self.choices) <= len(ascii_uppercase):
            return f"{len(self.choices)} choices; a question has 2 to {len(ascii_uppercase)}"
        if self.answer not in letters:
            return f"the answer is {self.answer!r}; it must be one of the letters {', '.join(letters)}"
        return None


def validation_examples(path: Path, target: str) -> list[Example]:
    """The development questions in `path`: by subject in the authors' csv files, else in file order.

    Every row of a file is taken; the authors stop at five, which is all that MMLU's files hold.
    """
    files = sorted(target_files(path, "mmlu", LAYOUT), key=_subject)
    questions = [question for file in files for question in _questions(file)]
    return as_examples(map(_prompt, questions), target, path)


def mmlu_prompt(subject: str, question: str, choices: Sequence[str]) -> str:
    """The user turn: what the questions are about, the question, and a line per choice."""
    # Two spaces before the subject: so it stands in the authors' prompts.
    heading = f"The following are multiple choice questions (with answers) about  {subject.replace('_', ' ')}."
    lines = [f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)]
    return "\n".join([heading, "", question, *lines, "Answer:"])


def _prompt(question: Question) -> Prompt:
    text = mmlu_prompt(question.subject, question.text, question.choices)
    return Prompt(question.subject, text, PREFILL, f" {question.answer}", question.id)


def _subject(file: Path) -> str:
    return file.name.removesuffix(DEV_SUFFIX)


def _questions(file: Path) -> list[Question]:
    if file.name.endswith(DEV_SUFFIX):
        return _csv_questions(file)
    return [_jsonl_question(row) for row in validation_rows(file)]


def _csv_questions(file: Path) -> list[Question]:
    """Rows `question, choice, …, answer` of a csv file without a header.

    Every field is taken as the text that it is: deviates from the authors, whose pandas guesses numbers and
    missing values and rewords a choice `007` or `NA`. None of MMLU's 57 files has a field that it changes.
    """
    questions, line = [], 1
    with opened(file) as lines:
        reader = csv.reader(lines, strict=True)
        try:
            for fields in reader:
                if fields:
                    questions.append(_csv_question(fields, file, line))
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"broken csv: {error}", file, line) from error
    return questions


def _csv_question(fields: list[str], file: Path, line: int) -> Question:
    if len(fields) <= NUM_CSV_FIELDS_AROUND_CHOICES:
        raise DataError(f"{len(fields)} fields; a row is question, choices, answer", file, line)
    text, *choices, answer = fields
    question = Question(_subject(file), text, choices, answer)
    if fault := question.fault():
        raise DataError(fault, file, line)
    return question


def _jsonl_question(row: Row) -> Question:
    choices = row.items("choices")
    if not all(isinstance(choice, str) for choice in choices):
        raise row.error(f"field 'choices' is {choices!r}; each choice must be text")
    question = Question(row.text("subtask"), row.text("question"), choices, row.text("answer"), row.id)
    if fault := question.fault():
        raise row.error(fault)
    return question
