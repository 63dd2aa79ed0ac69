"""Targets: built-in tasks and files of examples, what is selected for, and the questions that are held out."""

from __future__ import annotations

from gradsift.tasks.builtin import TASKS, TargetTask
from gradsift.tasks.question import EvaluationProtocol, Question, Scores
from gradsift.tasks.targets import EVALUATION_KEYS, TargetConfig, held_out, target_examples

__all__ = [
    "EVALUATION_KEYS",
    "TASKS",
    "EvaluationProtocol",
    "Question",
    "Scores",
    "TargetConfig",
    "TargetTask",
    "held_out",
    "target_examples",
]
