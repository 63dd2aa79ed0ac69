"""The demo's table, from outcomes that are written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradsift.demo.table import METHODS, Outcomes, table

LOSSES = {"base": (1.0, 1.0), "less": (0.2, 0.3), "random": (0.5, 0.7), "bm25": (0.6, 0.6), "full": (0.4, 0.4)}


@pytest.fixture
def lines(tmp_path: Path) -> list[str]:
    """The table of two seeds, each with two rows a selection and two answers, one of them right."""
    for seed in (0, 1):
        run = tmp_path / f"seed-{seed}"
        for method in METHODS:
            skills = ("sorting", "sorting" if method == "less" else "dates")
            _write(run / "selection" / "sorting" / f"{method}.jsonl", [{"skill": skill} for skill in skills])
        for method, losses in LOSSES.items():
            metrics = {"answer_loss": {"nats_per_token": losses[seed]}, "metrics": {"exact_match": 1.0}}
            answers = [{"output": "b < c", "answers": ["b < c"]}, {"output": "b c", "answers": ["b < c"]}]
            _write(run / "evaluation" / "sorting" / f"{method}.json", [metrics])
            _write(run / "evaluation" / "sorting" / method / "predictions.jsonl", answers)
    return table(Outcomes(tmp_path, "sorting", (0, 1)))


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _line(lines: list[str], name: str) -> list[str]:
    return next(line for line in lines if line.startswith(name)).removeprefix(name).split()


def test_a_line_has_means_and_standard_deviations(lines: list[str]) -> None:
    assert " ".join(_line(lines, "LESS")) == "2 100.0% ± 0.0% 0.250 ± 0.071 50.0% ± 0.0%"


def test_the_right_skill_is_the_targets(lines: list[str]) -> None:
    assert _line(lines, "random")[1] == "50.0%"


def test_an_answer_is_right_sign_for_sign(lines: list[str]) -> None:
    assert _line(lines, "BM25")[-3] == "50.0%"


def test_less_is_compared_with_random_seed_by_seed(lines: list[str]) -> None:
    assert "below random by 0.350 ± 0.071" in lines[-1]
    assert "4.9 and 2.5 standard deviations" in lines[-1]
