"""Reports of metrics, as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradsift.evaluation.report import report_lines, write_report
from gradsift.machine.artifact import write_json


def figures(accuracy: float | None, loss: float | None) -> dict[str, Any]:
    return {
        "metrics": {} if accuracy is None else {"accuracy": accuracy},
        "answer_loss": {"nats_per_token": loss},
        "counts": {"questions": 1200, "with_lost_shots": 3, "lost_shots": 4, "cut": 1},
    }


def metrics(accuracy: float | None, loss: float | None) -> dict[str, Any]:
    return {
        "metric": "answer_loss" if accuracy is None else "accuracy",
        "averaged_over": "questions",
        **figures(accuracy, loss),
        "subtasks": {"law": figures(accuracy, loss), "art": figures(accuracy, loss)},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(tmp_path / "mmlu" / "less.json", metrics(0.2567, 1.5))
    write_json(tmp_path / "mmlu" / "random.json", metrics(0.25, None))
    write_json(tmp_path / "own" / "less.json", metrics(None, 0.75))
    results = {"letters": {"alias": "letters", "acc,none": 0.5, "acc_stderr,none": 0.1}}
    write_json(tmp_path / "mmlu" / "less" / "harness.json", {"results": results})
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "| method | accuracy | answer loss | questions | lost shots | cut |",
        "| less | 25.7 | 1.500 | 1,200 | 3 | 1 |",
        "| random | 25.0 | – | 1,200 | 3 | 1 |",
        "| subtask | less | random |",
        "| law | 25.7 | 25.0 |",
        "| method | answer loss | questions | lost shots | cut |",
        "| law | 0.750 |",
        "| mmlu | less | letters | acc,none | 0.5000 |",
    ],
)
def test_report_has_a_row_per_method_subtask_and_harness_metric(folder: Path, line: str) -> None:
    assert line in [" ".join(found.split()) for found in report_lines(folder)]  # the cells, without their padding


def test_report_is_written_beside_what_it_is_made_from(folder: Path) -> None:
    path = write_report(folder)
    assert path == folder / "report.md"
    assert path.read_text(encoding="utf-8").splitlines() == report_lines(folder)
