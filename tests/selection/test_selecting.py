"""The total order of rows, the draw, and the budgets."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from gradsift.selection.selecting import ScoredRows, SelectConfig, choose, drawn, ranking, with_gumbel_noise
from gradsift.selection.strategies import STRATEGIES

IDS, SOURCES = ["b", "a", "c", "a", "d"], ["p", "q", "p", "p", "p"]
SCORES = np.array([0.5, 0.5, 0.9, 0.5, float("nan")])


def scored(scores: Any, ids: list[str] | None = None, sources: list[str] | None = None, tokens: int = 10) -> ScoredRows:
    """Rows of one subtask, with ids in the order of their positions."""
    score_N = np.asarray(scores, dtype=np.float64)
    count = len(score_N)
    ids = ids or [f"{row:03d}" for row in range(count)]
    num_tokens_N = np.full(count, tokens)
    return ScoredRows(ids, sources or ["p"] * count, num_tokens_N, score_N, score_N[:, None].astype(np.float32), count)


def chosen(rows: ScoredRows, is_duplicate: Any = None, **settings: Any) -> list[int]:
    config = SelectConfig.model_validate(settings)
    return choose(ranking(rows, config.order_of(config.methods[0])), rows, config, is_duplicate).rows.tolist()


def order(positions: list[int]) -> list[tuple[str, str]]:
    """The ranked keys of the rows, given in this order."""
    ids, sources = [IDS[index] for index in positions], [SOURCES[index] for index in positions]
    return [(ids[index], sources[index]) for index in ranking(scored(SCORES[positions], ids, sources), "top")]


def test_rows_are_ordered_by_score_then_id_then_source() -> None:
    assert order([0, 1, 2, 3, 4]) == [("c", "p"), ("a", "p"), ("a", "q"), ("b", "p")]


def test_the_order_does_not_depend_on_the_order_of_the_rows() -> None:
    for seed in range(20):
        positions = random.Random(seed).sample(range(5), 5)
        assert order(positions) == order([0, 1, 2, 3, 4])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_never_ranked(value: float) -> None:
    assert list(ranking(scored([value, 0.1]), "top")) == [1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_row_without_a_score_for_one_subtask_is_never_ranked(strategy: str) -> None:
    rows = scored(np.arange(4))
    subtask_scores_NG = np.tile(np.arange(4, dtype=np.float32)[:, None], (1, 3))
    subtask_scores_NG[2, 1] = np.nan
    partly = replace(rows, subtask_scores_NG=subtask_scores_NG)
    assert list(ranking(partly, strategy)) == [3, 1, 0]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_alike_are_ordered_by_id_then_source(strategy: str) -> None:
    rows = scored([0.5] * 4, ids=["b", "a", "a", "c"], sources=["p", "q", "p", "p"])
    assert list(ranking(rows, strategy)) == [2, 1, 0, 3]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"fraction": 0.4}, 4),
        ({"fraction": 0.29}, 2),
        ({"fraction": 0.001}, 1),
        ({"count": 3}, 3),
        ({"count": 30}, 10),
        ({"tokens": 35}, 3),
        ({"tokens": 30}, 3),
        ({"tokens": 5}, 0),
        ({}, 1),
        ({"method": "full", "count": 3}, 10),
    ],
)
def test_budgets(settings: dict[str, Any], expected: int) -> None:
    assert chosen(scored(-np.arange(10)), **settings) == list(range(expected))


def test_a_fraction_of_exactly_that_many_rows_is_not_rounded_away() -> None:
    assert len(chosen(scored(np.zeros(100)), fraction=0.29)) == 29


def test_two_budgets_are_refused() -> None:
    with pytest.raises(ValidationError, match="one of"):
        SelectConfig(fraction=0.1, count=3)


@pytest.mark.parametrize(("key", "value"), [("method", "bm52"), ("strategy", "robin")])
def test_an_unknown_name_is_refused_with_the_nearest(key: str, value: str) -> None:
    with pytest.raises(ValidationError, match="did you mean"):
        SelectConfig.model_validate({key: value})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "round_robin"),
        ({"method": "bm25"}, "top"),
        ({"method": "rds+"}, "round_robin"),
        ({"less_strategy": "mean"}, "mean"),
        ({"less_strategy": "mean", "strategy": "top"}, "top"),
        ({"less_strategy": "mean", "method": "bm25"}, "top"),
        ({"method": "rds+", "strategy": "top"}, "top"),
        ({"strategy": "bids"}, "bids"),
    ],
)
def test_a_method_has_a_strategy_of_its_own_that_the_users_word_replaces(
    settings: dict[str, str], expected: str
) -> None:
    config = SelectConfig.model_validate(settings)
    assert config.order_of(config.methods[0]) == expected


@pytest.mark.parametrize(
    ("most", "expected"), [(2, [0, 1, 3, 5]), (0.5, [0, 1, 3, 5]), (0.25, [0, 3, 5]), (3, [0, 1, 2, 3])]
)
def test_a_source_gives_no_more_than_its_share(most: float, expected: list[int]) -> None:
    rows = scored(-np.arange(6), sources=["p", "p", "p", "q", "p", "r"])
    assert chosen(rows, count=4, per_source_max=most) == expected


def test_a_share_of_a_token_budget_is_in_tokens() -> None:
    rows = scored(-np.arange(6), sources=["p", "p", "p", "q", "q", "q"])
    assert chosen(rows, tokens=40, per_source_max=0.5) == [0, 1, 3, 4]


@pytest.mark.parametrize("most", [1.5, 0, -1, 1.0])
def test_a_share_of_more_than_the_whole_is_refused(most: float) -> None:
    with pytest.raises(ValidationError):
        SelectConfig(per_source_max=most)


def test_duplicates_are_passed_over_and_counted() -> None:
    rows, config = scored(-np.arange(6)), SelectConfig(count=3)
    found = choose(ranking(rows, "top"), rows, config, lambda row: row in (1, 2))
    assert found.rows.tolist() == [0, 3, 4]
    assert found.kept_out == {"deduplicate": 2}


def test_no_row_is_looked_at_once_the_budget_is_spent() -> None:
    rows, looked_at = scored(-np.arange(6)), []
    chosen(rows, lambda row: bool(looked_at.append(row)), count=2)
    assert looked_at == [0, 1]


def test_the_whole_pool_knows_no_cap() -> None:
    assert chosen(scored(-np.arange(4)), lambda _: True, method="full", per_source_max=1) == [0, 1, 2, 3]


def test_a_draw_follows_its_seed() -> None:
    rows = scored(np.zeros(50))
    first, again, other = (list(ranking(with_gumbel_noise(rows, 1.0, seed), "top")) for seed in (0, 0, 1))
    assert first == again != other


def test_the_odds_of_a_draw_are_those_of_its_temperature() -> None:
    """Scores 0 and t ln 3: the second row is drawn first three times in four."""
    rows = scored([0.0, 0.1 * np.log(3)])
    firsts = [next(ranking(with_gumbel_noise(rows, 0.1, seed), "top")) for seed in range(2000)]
    assert np.mean(firsts) == pytest.approx(0.75, abs=0.03)


def test_a_draw_never_takes_what_is_no_number() -> None:
    assert set(ranking(with_gumbel_noise(scored([0.0, float("nan"), 0.1]), 1.0, 0), "top")) == {0, 2}


def with_random(rows: ScoredRows, seed: int = 0, **settings: Any) -> tuple[list[int], int]:
    """The rows chosen, the best first, and how many of them at random."""
    config = SelectConfig.model_validate(settings)
    found = choose(ranking(rows, "top"), rows, config, at_random=drawn([rows], seed))
    return found.rows.tolist(), found.num_random


@pytest.mark.parametrize(("share", "num_random"), [(0.0, 0), (0.09, 0), (0.1, 1), (0.25, 2), (0.3, 3), (0.99, 9)])
def test_a_share_of_the_budget_is_drawn_at_random(share: float, num_random: int) -> None:
    rows, count = with_random(scored(-np.arange(100)), count=10, random_share=share)
    assert count == num_random
    assert len(set(rows)) == 10
    assert rows[: 10 - count] == list(range(10 - count))
    assert rows[10 - count :] != list(range(10 - count, 10)) or not count


def test_the_draw_follows_its_seed_and_takes_no_row_twice() -> None:
    rows = scored(-np.arange(12))
    first, again, other = (with_random(rows, seed, count=12, random_share=0.5)[0] for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(first) == list(range(12))


def test_the_draw_takes_nothing_that_is_no_number() -> None:
    rows, _ = with_random(scored([3.0, float("nan"), 2.0, 1.0, float("inf")]), count=5, random_share=0.8)
    assert sorted(rows) == [0, 2, 3]


def test_every_row_left_is_drawn_as_often() -> None:
    rows = scored(-np.arange(5))
    drawn_rows = [with_random(rows, seed, count=2, random_share=0.5)[0][1] for seed in range(2000)]
    counts = np.bincount(drawn_rows, minlength=5)
    assert counts[0] == 0
    assert counts[1:] == pytest.approx([500] * 4, abs=75)


def test_the_draw_keeps_to_caps_duplicates_and_tokens() -> None:
    sources = ["p"] * 3 + ["q"] * 7
    rows, config = scored(-np.arange(10), sources=sources), SelectConfig(count=6, per_source_max=4, random_share=0.5)
    found = choose(ranking(rows, "top"), rows, config, lambda row: row in (5, 6), drawn([rows], 0))
    assert found.rows.tolist()[:3] == [0, 1, 2]
    assert set(found.rows.tolist()[3:]) <= {3, 4, 7, 8, 9}
    assert found.num_random == 3
    chosen_rows, count = with_random(scored(-np.arange(10)), tokens=55, random_share=0.4)
    assert (len(chosen_rows), count) == (5, 2)


def test_the_whole_pool_knows_no_draw() -> None:
    assert with_random(scored(-np.arange(4)), method="full", random_share=0.5) == ([0, 1, 2, 3], 0)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (["less", "rds++"], "did you mean 'rds\\+'"),
        (["less", "less"], "less stands there twice"),
        (["less", "full"], "full takes every row"),
        ([], "give the name of a method, or a list"),
        (3, "give the name of a method, or a list"),
        (["less", ["rds"]], "give the name of a method, or a list"),
    ],
)
def test_methods_that_cannot_be_fused_are_refused(method: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SelectConfig.model_validate({"method": method})


def test_several_methods_have_a_label_of_their_own() -> None:
    both, alone = (SelectConfig.model_validate({"method": names}) for names in (["less", "rds+"], ["rds+"]))
    assert (both.label, both.methods) == ("fused-less-rds+", ("less", "rds+"))
    assert (alone.method, alone.label, alone.methods) == ("rds+", "rds+", ("rds+",))
    assert SelectConfig.model_validate({"method": ["less", "rds"], "name": "both"}).label == "both"
