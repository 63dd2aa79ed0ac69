"""`Prediction`: what became of one held-out question; and the metrics of many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gradsift.tasks import Scores


@dataclass(frozen=True, slots=True)
class Prediction:
    """What became of one question; the fields are those of a line of predictions.jsonl."""

    id: str
    subtask: str
    prompt: str
    """As the model saw it, special tokens that the tokenizer adds left out."""
    num_shots: int
    lost_shots: int
    cut: bool
    output: str | None
    """The choice or the generated text; None where nothing was to be answered."""
    answers: tuple[str, ...]
    scores: Scores
    answer_nats: float | None
    """Sum over the right answer's tokens; None where its text isn't known."""
    answer_tokens: int
    answer_num_shots: int | None
    """Shots of the prompt that the right answer was read after; its length decides them, not max_new_tokens."""
    log_likelihoods: dict[str, float] | None = None
    """Of each choice."""


def summarised(predictions: Sequence[Prediction], averaged_over: Literal["questions", "subtasks"]) -> dict[str, Any]:
    """Metrics from 0 to 1, overall and per subtask; the answer loss in nats per token; how many prompts lost what."""
    by_subtask: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_subtask.setdefault(prediction.subtask, []).append(prediction)
    subtasks = {name: _figures(rows) for name, rows in sorted(by_subtask.items())}
    whole = _figures(predictions)
    names = list(whole["metrics"])
    judged = [figures["metrics"] for figures in subtasks.values() if figures["metrics"]]
    means = {name: _mean(metrics[name] for metrics in judged) for name in names}
    return {
        "metric": names[0] if names else "answer_loss",
        "averaged_over": averaged_over,
        **whole,
        "metrics": means if averaged_over == "subtasks" else whole["metrics"],
        "subtasks": subtasks,
    }


def _figures(predictions: Sequence[Prediction]) -> dict[str, Any]:
    judged = [prediction.scores for prediction in predictions if prediction.scores]
    names = list(judged[0]) if judged else []
    return {
        "metrics": {name: _mean(scores[name] for scores in judged) for name in names},
        "answer_loss": _answer_loss(predictions),
        "counts": {
            "questions": len(predictions),
            "with_lost_shots": sum(prediction.lost_shots > 0 for prediction in predictions),
            "lost_shots": sum(prediction.lost_shots for prediction in predictions),
            "cut": sum(prediction.cut for prediction in predictions),
        },
    }


def _answer_loss(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Nats per token: all nats by all tokens, so that a long answer counts for more than a short one."""
    known = [prediction for prediction in predictions if prediction.answer_nats is not None]
    num_tokens = sum(prediction.answer_tokens for prediction in known)
    counts = {"num_tokens": num_tokens, "num_questions": len(known)}
    if not known:
        reason = "no held-out item says its whole answer (BBH's test items have no chain of thought)"
        return {"nats_per_token": None, **counts, "reason": reason}
    return {"nats_per_token": sum(prediction.answer_nats or 0.0 for prediction in known) / num_tokens, **counts}


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
