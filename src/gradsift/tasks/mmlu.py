"""MMLU: multiple-choice questions of 57 subjects; gives back the development questions of each, and the test questions.

A test question is asked as in the authors' evaluation code with its chat format: five development questions with
their letters, the question, and the assistant's "The answer is:"; the likeliest of the letters is the answer.
Deviates from it in that a question too long for the model loses shots for itself alone; there every later question
of the subject loses them too. (Their released script calls that code without the chat format.)
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from gradsift.data import Example
from gradsift.errors import DataError
from gradsift.tasks.files import Row, held_out_rows, opened, target_files, validation_rows
from gradsift.tasks.prompt import Prompt, as_examples, parted
from gradsift.tasks.question import EvaluationProtocol, Question, Scores, Shots, ShotText, in_natural_order, numbered

PREFILL = "The answer is:"
LAYOUT = ("dev/*_dev.csv", "*_dev.csv")
TEST_LAYOUT = ("test/*_test.csv", "*_test.csv")
DEV_SUFFIX = "_dev.csv"
TEST_SUFFIX = "_test.csv"
NUM_CSV_FIELDS_AROUND_CHOICES = 2  # the question before them, the answer after them


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
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


def validation_examples(path: Path, target: str, hold_out: int = 0) -> list[Example]:
    """The development questions in `path`: by subject in the authors' csv files, else in file order.

    Every row of a file is taken; the authors stop at five, which is all that MMLU's files hold.
    """
    return as_examples(_prompts(path, hold_out)[0], target, path)


def held_out_examples(path: Path, target: str, hold_out: int) -> list[Example]:
    """The last `hold_out` development questions of every subject."""
    return as_examples(_prompts(path, hold_out)[1], target, path)


def _prompts(path: Path, hold_out: int) -> tuple[list[Prompt], list[Prompt]]:
    files = sorted(target_files(path, "mmlu", LAYOUT), key=_subject)
    prompts = list(map(_prompt, _all_questions(files)))
    return parted(prompts, lambda prompt: prompt.subtask, hold_out, path)


def test_questions(path: Path, shots_path: Path) -> list[Question]:
    """The test questions in `path`, each with the development questions of its subject in `shots_path`."""
    shown = _all_questions(target_files(shots_path, "mmlu", LAYOUT))
    shots = Shots((ShotText(question.subject, question.id, _shot(question)) for question in shown), shots_path)
    files = target_files(path, "mmlu", TEST_LAYOUT)
    asked = [question for file in files for question in _held_out(file, shots_path)]
    names = numbered(((question.subject, question.id) for question in asked), "test")
    return in_natural_order(
        (_asked(name, question, shots.of(question.subject)) for name, question in zip(names, asked, strict=True)), path
    )


def _judge(question: Question, output: str) -> Scores:
    return {"accuracy": float(output.strip() in question.answers)}


EVALUATION = EvaluationProtocol(judge=_judge, num_shots=5, averaged_over="questions")


def mmlu_prompt(subject: str, question: str, choices: Sequence[str]) -> str:
    """The user turn: what the questions are about, the question, and a line per choice."""
    return _heading(subject) + _with_choices(question, choices)


def _heading(subject: str) -> str:
    # Two spaces before the subject: so it stands in the authors' prompts.
    return f"The following are multiple choice questions (with answers) about  {subject.replace('_', ' ')}.\n\n"


def _with_choices(question: str, choices: Sequence[str]) -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)]
    return "\n".join([question, *lines, "Answer:"])


def _shot(question: ChoiceQuestion) -> str:
    return f"{_with_choices(question.text, question.choices)} {question.answer}\n\n"


def _asked(name: str, question: ChoiceQuestion, shots: tuple[str, ...]) -> Question:
    return Question(
        id=name,
        subtask=question.subject,
        heading=_heading(question.subject),
        shots=shots,
        question=_with_choices(question.text, question.choices),
        prefill=PREFILL,
        answers=(question.answer,),
        choices=tuple(f" {letter}" for letter in ascii_uppercase[: len(question.choices)]),
        completion=f" {question.answer}",
    )


def _prompt(question: ChoiceQuestion) -> Prompt:
    text = mmlu_prompt(question.subject, question.text, question.choices)
    return Prompt(question.subject, text, PREFILL, f" {question.answer}", question.id)


def _subject(file: Path) -> str:
    return file.name.removesuffix(DEV_SUFFIX).removesuffix(TEST_SUFFIX)


def _all_questions(files: Sequence[Path]) -> list[ChoiceQuestion]:
    return [question for file in files for question in _questions(file)]


def _held_out(file: Path, shots_path: Path) -> list[ChoiceQuestion]:
    if file.name.endswith(TEST_SUFFIX):
        return _csv_questions(file)
    return [_jsonl_question(row) for row in held_out_rows(file, shots_path)]


def _questions(file: Path) -> list[ChoiceQuestion]:
    if file.name.endswith(DEV_SUFFIX):
        return _csv_questions(file)
    return [_jsonl_question(row) for row in validation_rows(file)]


def _csv_questions(file: Path) -> list[ChoiceQuestion]:
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


def _csv_question(fields: list[str], file: Path, line: int) -> ChoiceQuestion:
    if len(fields) <= NUM_CSV_FIELDS_AROUND_CHOICES:
        raise DataError(f"{len(fields)} fields; a row is question, choices, answer", file, line)
    text, *choices, answer = fields
    question = ChoiceQuestion(_subject(file), text, choices, answer)
    if fault := question.fault():
        raise DataError(fault, file, line)
    return question


def _jsonl_question(row: Row) -> ChoiceQuestion:
    choices = row.items("choices")
    if not all(isinstance(choice, str) for choice in choices):
        raise row.error(f"field 'choices' is {choices!r}; each choice must be text")
    question = ChoiceQuestion(row.text("subtask"), row.text("question"), choices, row.text("answer"), row.id)
    if fault := question.fault():
        raise row.error(fault)
    return question
