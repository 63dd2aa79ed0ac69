"""A model's answers to held-out questions, and the metrics made of them."""

from __future__ import annotations

from gradsift.evaluation.harness import require_harness
from gradsift.evaluation.harness_files import HarnessJob, evaluate_with_harness
from gradsift.evaluation.report import write_report
from gradsift.evaluation.target import PREDICTIONS_FILE, EvaluateConfig, EvaluationJob, evaluate_target

__all__ = [
    "PREDICTIONS_FILE",
    "EvaluateConfig",
    "EvaluationJob",
    "HarnessJob",
    "evaluate_target",
    "evaluate_with_harness",
    "require_harness",
    "write_report",
]
