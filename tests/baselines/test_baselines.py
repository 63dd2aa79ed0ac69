"""What every baseline promises, and what each of them does."""

from __future__ import annotations

import numpy as np
import pytest

from gradsift.baselines.methods import BASELINES, own_strategy
from gradsift.baselines.texts import Texts


def texts(seed: int = 0) -> Texts:
    pool = ["a red cat", "a blue dog", "green green grass", "the cat and the dog", "nothing of it", "cat"]
    answers = ["cat", "dog", "grass", "", "it", "a very long answer"]
    return Texts(pool, answers, ["red cat", "cat", "blue dog"], [0, 0, 1], seed)


@pytest.mark.parametrize("name", BASELINES)
def test_a_score_for_every_row_and_subtask(name: str) -> None:
    scores_NG = BASELINES[name](texts())
    assert scores_NG.shape == (6, 2)
    assert scores_NG.dtype == np.float32
    assert np.isfinite(scores_NG).all()


@pytest.mark.parametrize("name", BASELINES)
def test_the_same_texts_and_seed_give_the_same_scores(name: str) -> None:
    assert np.array_equal(BASELINES[name](texts()), BASELINES[name](texts()))


def test_random_orders_follow_the_seed() -> None:
    first, second = (BASELINES["random"](texts(seed))[:, 0] for seed in (0, 1))
    assert sorted(first) == sorted(second) == list(range(6))
    assert first.tolist() != second.tolist()


def test_random_draws_each_row_about_as_often() -> None:
    best = [int(BASELINES["random"](texts(seed))[:, 0].argmax()) for seed in range(600)]
    assert min(best.count(row) for row in range(6)) > 60


def test_full_prefers_no_row() -> None:
    assert not BASELINES["full"](texts()).any()


def test_length_prefers_the_longest_answer() -> None:
    order = np.argsort(-BASELINES["length"](texts())[:, 0], kind="stable")
    assert order.tolist() == [5, 2, 0, 1, 4, 3]


def test_less_has_no_strategy_as_a_baseline() -> None:
    with pytest.raises(ValueError, match="less_strategy"):
        own_strategy("less")
