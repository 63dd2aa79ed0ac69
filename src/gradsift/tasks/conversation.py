"""A user's own held-out examples as questions: the conversation up to its last assistant turn, and that turn."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from gradsift.data import Example, Message, said
from gradsift.errors import DataError
from gradsift.tasks import squad
from gradsift.tasks.question import EvaluationProtocol, Question, Scores, in_natural_order

OwnMetric = Literal["loss", "exact_match", "f1"]


def held_out_questions(examples: Iterable[Example], target: str, path: Path) -> list[Question]:
    """A question per example, in the natural order of their ids; an example without a subtask is the target's.

    `DataError`, naming `path`, where there is none, or where an example has no assistant turn to answer.
    """
    return in_natural_order((_question(example, target, path) for example in examples), path)


def asked_for_loss(example: Example) -> Question:
    """A built-in task's validation example as a question that nothing but the loss of its completion is asked of."""
    question, completion = map(said, example.messages)
    return Question(
        id=example.id,
        subtask=example.subtask or example.source,
        heading="",
        shots=(),
        question=question,
        prefill=example.prefill or "",
        answers=(),
        completion=completion,
    )


def _question(example: Example, target: str, path: Path) -> Question:
    turns = [turn for turn, message in enumerate(example.messages) if message["role"] == "assistant"]
    if not turns:
        raise DataError(f"held-out example {example.id!r} has no assistant turn: there is no answer to compare", path)
    before, reply = example.messages[: turns[-1]], example.messages[turns[-1]]
    last = said(before.pop()) if before and before[-1]["role"] == "user" else ""
    answer = reply["content"] or said(reply)
    return Question(
        id=example.id,
        subtask=example.subtask or target,
        heading="",
        shots=(),
        question=last,
        prefill="",
        answers=(answer,),
        completion=answer,
        history=tuple(before),
        tools=tuple(example.tools),
        reply=reply if _is_more_than_text(reply) else None,
    )


def _is_more_than_text(message: Message) -> bool:
    return "tool_calls" in message or "reasoning_content" in message


def _judge_exact_match(question: Question, output: str) -> Scores:
    return {"exact_match": squad.exact_match(output, question.answers)}


def _judge_f1(question: Question, output: str) -> Scores:
    return {
        "f1": squad.f1(output, question.answers),
        "exact_match": squad.exact_match(output, question.answers),
    }


OWN_PROTOCOLS: dict[OwnMetric, EvaluationProtocol] = {
    "loss": EvaluationProtocol(judge=None),
    "exact_match": EvaluationProtocol(judge=_judge_exact_match),
    "f1": EvaluationProtocol(judge=_judge_f1),
}
"""Both metrics compare as SQuAD does: without case, punctuation and articles."""
