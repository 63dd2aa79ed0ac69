"""One model on one target: the held-out questions answered, and the metrics made of the answers.

Writes every answer with its prompt (`predictions.jsonl`), then the metrics as JSON: a finished evaluation has them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from gradsift.encoding import Encoder
from gradsift.evaluation.harness import HarnessConfig
from gradsift.evaluation.predictions import Prediction, summarised
from gradsift.machine import Progress, atomic_open, fingerprint, finished_facts, renewed
from gradsift.tasks import EvaluationProtocol, Question, Scores, TargetConfig, held_out

if TYPE_CHECKING:
    from torch import nn

    from gradsift.evaluation.answer_losses import AnswerLoss
    from gradsift.evaluation.fitting import Fitted


logger = logging.getLogger(__name__)
PREDICTIONS_FILE = "predictions.jsonl"
METRICS_KEYS = ("metrics", "metric", "averaged_over", "subtasks", "answer_loss", "counts", "inputs")
NEWER: dict[str, Any] = {"tools": (), "reply": None}
"""Fields of a question that came later, and what they say of one without."""
REVISION = 1
"""Raised when answers or metrics are made in another way, so that finished evaluations are done again."""


class EvaluateConfig(BaseModel):
    """How the held-out questions are answered; what is None follows the target's protocol."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: int | Literal["auto"] = "auto"
    """Questions at a time; `auto`: as many as a budget of tokens allows."""
    limit: int | None = Field(None, ge=1)
    """Questions per subtask, drawn by the hash of their ids; None: all of them."""
    max_new_tokens: int | None = Field(None, ge=1)
    """Tokens of a generated answer; a target's own `max_new_tokens` comes before it."""
    num_shots: int | None = Field(None, ge=0)
    """Worked examples in a prompt."""
    harness: HarnessConfig | None = None
    """What lm-evaluation-harness is asked besides; needs `pip install gradsift[eval]`."""
    base: bool = False
    """Evaluate the model before training too, for comparison."""

    @field_validator("batch_size")
    @classmethod
    def _at_least_one(cls, value: int | Literal["auto"]) -> int | Literal["auto"]:
        if value != "auto" and value < 1:
            raise ValueError("give at least 1 question at a time, or auto")
        return value


@dataclass(frozen=True)
class EvaluationJob:
    """One model on one target, and where the outcome goes."""

    model: Callable[[], nn.Module]
    """Gives the model, in evaluation mode on its device; called where something is left to be answered."""
    encoder: Encoder
    target: TargetConfig
    config: EvaluateConfig
    folder: Path
    """Of the predictions."""
    metrics_path: Path
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """What the model comes from, as JSON values; questions, protocol and encoding are known here."""


def evaluate_target(job: EvaluationJob) -> dict[str, Any]:
    """The metrics of the job; read from its file where that was made from the same inputs.

    Raises ConfigError and DataError as `held_out` does, and where the settings leave no room for a prompt.
    """
    questions, protocol = held_out(job.target)
    questions = drawn(questions, job.target.test_limit or job.config.limit)
    inputs = _inputs(job, questions, protocol)
    if (finished := _finished(job)) and finished["inputs"] == inputs:
        logger.info("evaluate %s: %s is up to date", job.target.name, job.metrics_path)
        return finished
    run = _Run(job, protocol)
    predictions = run.predictions(questions)
    with renewed(job.metrics_path, job.folder / PREDICTIONS_FILE) as metrics:
        _write_predictions(job.folder / PREDICTIONS_FILE, predictions)
        metrics |= {
            "target": job.target.name,
            **summarised(predictions, protocol.averaged_over),
            "settings": run.settings,
            "inputs": inputs,
        }
    return metrics


def drawn(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """At most `limit` questions of each subtask, in their order; those whose ids have the smallest SHA-256.

    Those that are asked for their loss alone are few, and stay.
    """
    if limit is None:
        return list(questions)
    by_subtask: dict[str, list[str]] = {}
    for question in filter(_is_judged, questions):
        by_subtask.setdefault(question.subtask, []).append(question.id)
    kept = {name for names in by_subtask.values() for name in sorted(names, key=_sha256)[:limit]}
    return [question for question in questions if question.id in kept or not _is_judged(question)]


def _is_judged(question: Question) -> bool:
    return bool(question.answers)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _inputs(job: EvaluationJob, questions: Sequence[Question], protocol: EvaluationProtocol) -> str:
    """Fingerprint of everything that the metrics come from; the batch size is no part of it."""
    rules = {key: value for key, value in asdict(protocol).items() if key != "judge"}
    settings = {"max_new_tokens": _wanted_tokens(job), "num_shots": _wanted_shots(job)}
    return fingerprint(
        [
            REVISION,
            dict(job.inputs),
            job.encoder.meaning(),
            [_said(question) for question in questions],
            rules,
            job.target.model_dump(include={"task", "metric"}),
            settings,
        ]
    )


def _said(question: Question) -> dict[str, Any]:
    """The question, but for newer fields that are as they were before there were any: evaluations made then stay."""
    return {name: value for name, value in asdict(question).items() if name not in NEWER or value != NEWER[name]}


def _wanted_tokens(job: EvaluationJob) -> int | None:
    """The user's word on the tokens of an answer: the target's own, else the run's; None: as the protocol says."""
    return job.target.max_new_tokens or job.config.max_new_tokens


def _wanted_shots(job: EvaluationJob) -> int | None:
    """The user's word on the worked examples of a prompt, likewise."""
    return job.config.num_shots if job.target.num_shots is None else job.target.num_shots


def _finished(job: EvaluationJob) -> dict[str, Any] | None:
    return finished_facts(job.metrics_path, [job.folder / PREDICTIONS_FILE], METRICS_KEYS)


@dataclass(frozen=True, slots=True)
class _Output:
    """What was answered to a question, after which prompt."""

    fitted: Fitted
    text: str | None = None
    choices: dict[str, AnswerLoss] = field(default_factory=dict)
    """The loss of each choice."""


class _Run:
    """One evaluation under way: the protocol with the user's settings laid over it."""

    def __init__(self, job: EvaluationJob, protocol: EvaluationProtocol) -> None:
        from gradsift.evaluation.answering import Answerer

        self._protocol, self._label = protocol, f"evaluate {job.target.name}"
        self._answerer = Answerer(job.model(), job.encoder, job.config.batch_size)
        wanted_shots = _wanted_shots(job)
        self._num_shots = protocol.num_shots if wanted_shots is None else wanted_shots
        self._fitter = self._answerer.fitter(self._num_shots)
        self._max_new_tokens = self._answerer.new_tokens(_wanted_tokens(job), protocol.max_new_tokens)

    @property
    def settings(self) -> dict[str, Any]:
        """What decided the figures, for the metrics file."""
        return {
            "num_shots": self._num_shots,
            "max_new_tokens": self._max_new_tokens,
            "stop": self._protocol.stop,
            "passage_tokens": self._protocol.passage_tokens,
            "context_tokens": self._answerer.context,
        }

    def predictions(self, questions: Sequence[Question]) -> list[Prediction]:
        """One per question, in order."""
        asked = self._shortened(questions)
        outputs = self._outputs(asked)
        losses = self._losses(asked, outputs)
        return [self._prediction(*row) for row in zip(questions, outputs, losses, strict=True)]

    def _shortened(self, questions: Sequence[Question]) -> Sequence[Question]:
        num_tokens = self._protocol.passage_tokens
        if num_tokens is None:
            return questions
        shorten = partial(self._fitter.shortened, num_tokens=num_tokens)
        return [question.with_passages(shorten) for question in questions]

    def _outputs(self, questions: Sequence[Question]) -> list[_Output]:
        judged = [question for question in questions if _is_judged(question)]
        if self._protocol.judge is None or not judged:
            return list(map(self._unanswered, questions))
        chosen = all(question.choices for question in judged)
        answers = iter(self._chosen(judged) if chosen else self._generated(judged))
        asked = {question.id for question in judged}
        return [next(answers) if question.id in asked else self._unanswered(question) for question in questions]

    def _unanswered(self, question: Question) -> _Output:
        return _Output(self._fitter.prompt(question, num_new_tokens=1))

    def _chosen(self, questions: Sequence[Question]) -> list[_Output]:
        with Progress(self._label, len(questions), "questions") as progress:
            answers = self._answerer.choose(questions, self._num_shots, progress.advance)
        outputs = []
        for question, answer in zip(questions, answers, strict=True):
            losses = dict(zip(question.choices, answer.losses(), strict=True))
            outputs.append(_Output(answer.fitted, question.choices[answer.best], losses))
        return outputs

    def _generated(self, questions: Sequence[Question]) -> list[_Output]:
        prompts = [self._fitter.prompt(question, self._max_new_tokens) for question in questions]
        with Progress(self._label, len(questions), "questions") as progress:
            answers = self._answerer.generate(prompts, self._max_new_tokens, self._protocol.stop, progress.advance)
        return [_Output(answer.fitted, answer.text) for answer in answers]

    def _losses(self, questions: Sequence[Question], outputs: Sequence[_Output]) -> list[AnswerLoss | None]:
        """The answer losses; what the likelihoods of the choices tell already isn't computed again."""
        known = [
            output.choices.get(question.completion or "") for question, output in zip(questions, outputs, strict=True)
        ]
        pending = [question for question, loss in zip(questions, known, strict=True) if loss is None]
        with Progress(f"{self._label}, answer loss", len(pending), "questions") as progress:
            losses = iter(self._answerer.answer_losses(pending, self._num_shots, progress.advance))
        return [next(losses) if loss is None else loss for loss in known]

    def _prediction(self, question: Question, output: _Output, loss: AnswerLoss | None) -> Prediction:
        fitted = loss.fitted if loss and output.text is None else output.fitted
        return Prediction(
            id=question.id,
            subtask=question.subtask,
            prompt=fitted.prompt,
            num_shots=fitted.num_shots,
            lost_shots=self._fitter.wanted_shots(question) - fitted.num_shots,
            cut=fitted.cut,
            output=output.text,
            answers=question.answers,
            scores=self._scores(question, output),
            answer_nats=loss.nats if loss else None,
            answer_tokens=loss.num_tokens if loss else 0,
            answer_num_shots=loss.fitted.num_shots if loss else None,
            log_likelihoods={choice: -loss.nats for choice, loss in output.choices.items()} or None,
        )

    def _scores(self, question: Question, output: _Output) -> Scores:
        if self._protocol.judge is None or output.text is None:
            return {}
        return self._protocol.judge(question, output.text)


def _write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    with atomic_open(path) as file:
        for prediction in predictions:
            file.write(json.dumps(asdict(prediction), ensure_ascii=False).encode() + b"\n")
