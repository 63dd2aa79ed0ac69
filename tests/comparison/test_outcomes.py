"""Spreads over seeds, and paired differences with their intervals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gradsift.comparison.outcomes import (
    Outcome,
    bootstrapped,
    deviations_below,
    loss_difference,
    metric_difference,
    spread,
    subtasks_below,
)


def outcome(folder: Path, seed: int, nats: list[float | None], right: list[float | None]) -> Outcome:
    """Items of two tokens each."""
    path = folder / f"{seed}-{len(list(folder.iterdir()))}.jsonl"
    rows = [
        {
            "id": f"q{i}",
            "subtask": f"s{i}",
            "answer_nats": n,
            "answer_tokens": 2,
            "scores": {} if r is None else {"accuracy": r},
        }
        for i, (n, r) in enumerate(zip(nats, right, strict=True))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Outcome({"seed": seed, "metric_name": "accuracy", "metric": None, "answer_loss": None}, path)


def test_spread_is_the_mean_and_the_sample_deviation() -> None:
    assert spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))


def test_one_seed_has_no_deviation() -> None:
    assert spread([1.0]) == (1.0, None)
    assert spread([]) is None


def test_loss_difference_is_of_all_nats_by_all_tokens(tmp_path: Path) -> None:
    arms = [outcome(tmp_path, 0, [1.0, 2.0], [1, 0])]
    others = [outcome(tmp_path, 0, [2.0, 4.0], [0, 0])]
    found = loss_difference(arms, others)
    assert found is not None
    assert found.mean == pytest.approx((1.0 + 2.0 - 2.0 - 4.0) / 4)


def test_seeds_are_paired_and_those_without_a_partner_left_out(tmp_path: Path) -> None:
    arms = [outcome(tmp_path, seed, [1.0], [1]) for seed in (0, 1)]
    others = [outcome(tmp_path, 1, [4.0], [0]), outcome(tmp_path, 2, [9.0], [0])]
    found = loss_difference(arms, others)
    assert found is not None
    assert found.mean == pytest.approx((1.0 - 4.0) / 2)


def test_items_without_the_figure_dont_count(tmp_path: Path) -> None:
    arms = [outcome(tmp_path, 0, [1.0, None], [None, 1.0])]
    others = [outcome(tmp_path, 0, [3.0, None], [None, 0.0])]
    loss, metric = loss_difference(arms, others), metric_difference(arms, others)
    assert loss is not None and metric is not None
    assert (loss.mean, metric.mean) == (-1.0, 1.0)


def test_nothing_in_common_gives_no_difference(tmp_path: Path) -> None:
    assert loss_difference([outcome(tmp_path, 0, [None], [None])], [outcome(tmp_path, 0, [None], [None])]) is None
    assert loss_difference([], []) is None


def test_subtasks_below_are_those_whose_loss_is_lower_over_all_seeds(tmp_path: Path) -> None:
    arms = [outcome(tmp_path, seed, [1.0, 3.0, None], [1, 1, 1]) for seed in (0, 1)]
    others = [outcome(tmp_path, 0, [0.5, 2.0, None], [0, 0, 1]), outcome(tmp_path, 1, [2.0, 3.5, None], [0, 0, 1])]
    assert subtasks_below(arms, others) == (1, 2)
    assert subtasks_below(arms, []) is None


def test_interval_of_equal_differences_is_a_point() -> None:
    found = bootstrapped(np.full((3, 10), -0.5), np.ones(10))
    assert (found.mean, found.low, found.high) == pytest.approx((-0.5, -0.5, -0.5))


def test_interval_is_as_wide_as_the_standard_error_says() -> None:
    differences_1Q = np.random.default_rng(0).normal(size=(1, 400))
    found = bootstrapped(differences_1Q, np.ones(400))
    assert found.high - found.low == pytest.approx(2 * 1.96 / 400**0.5, rel=0.15)


def test_deviations_are_of_the_side_that_varies_more() -> None:
    assert deviations_below([1.0, 1.0], [4.0, 6.0]) == pytest.approx(4 / 2**0.5)
    assert deviations_below([1.0], [4.0, 6.0]) is None
