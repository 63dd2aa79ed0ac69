"""Every strategy on a case whose answer is plain to see, and what all of them promise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from gradsift.selection.strategies import STRATEGIES, Candidates

Scores = npt.NDArray[np.float32]


def candidates(*rows: list[float]) -> Candidates:
    """Rows by their scores for each subtask; the score is the largest."""
    scores_MG = np.array(rows, dtype=np.float32)
    return Candidates(scores_MG.max(axis=1).astype(np.float64), scores_MG)


def order(name: str, *rows: list[float]) -> list[int]:
    return list(STRATEGIES[name](candidates(*rows)))


def random_rows(seed: int, num_rows: int = 40, num_subtasks: int = 5) -> Scores:
    """Scores with many equal ones."""
    return np.random.default_rng(seed).integers(0, 9, (num_rows, num_subtasks)).astype(np.float32)


def taken(scores_MG: Scores, name: str) -> list[int]:
    return list(STRATEGIES[name](Candidates(scores_MG.max(axis=1).astype(np.float64), scores_MG)))


def test_top_takes_the_largest_score_on_any_subtask() -> None:
    assert order("top", [0.9, 0.0], [0.5, 0.5], [0.0, 0.8]) == [0, 2, 1]


def test_top_goes_by_the_score_that_was_made_of_the_subtasks() -> None:
    scores_MG = np.array([[0.9, 0.0], [0.5, 0.5]], dtype=np.float32)
    assert list(STRATEGIES["top"](Candidates(np.array([0.45, 0.5]), scores_MG))) == [1, 0]


def test_mean_takes_the_row_that_is_good_for_all() -> None:
    assert order("mean", [0.9, 0.0], [0.5, 0.5], [0.0, 0.8]) == [1, 0, 2]


def test_round_robin_lets_every_subtask_choose_in_turn() -> None:
    """The first subtask's scores are larger throughout; the second still has every other row."""
    assert order("round_robin", [9, 0.1], [8, 0.2], [7, 0.3], [6, 0.4]) == [0, 3, 1, 2]


def test_round_robin_passes_over_what_another_subtask_has_taken() -> None:
    assert order("round_robin", [9, 9], [8, 7], [7, 8]) == [0, 2, 1]


def test_votes_count_the_subtasks_among_whose_best_fifth_a_row_is() -> None:
    """Of ten rows the best two of each subtask have its vote: row 5 has two, rows 0 and 9 one each."""
    rows = [[0.1, 0.1] for _ in range(10)]
    rows[5], rows[0], rows[9] = [0.6, 0.6], [9.0, 0.0], [0.0, 5.0]
    assert order("votes", *rows)[:3] == [5, 0, 9]


def test_bids_turns_to_the_subtask_that_the_rows_taken_so_far_serve_least() -> None:
    """`top` takes the three rows of the first subtask; BIDS takes the one row of the second too."""
    rows = [[1.0, 0.0], [0.9, 0.0], [0.8, 0.0], [0.0, 0.5], [0.0, 0.0], [0.0, 0.0]]
    assert order("top", *rows)[:3] == [0, 1, 2]
    assert sorted(order("bids", *rows)[:2]) == [0, 3]


def test_bids_does_not_mind_a_subtask_of_larger_scores() -> None:
    rows = random_rows(0)
    assert taken(rows * np.array([1, 16, 1, 2, 1], dtype=np.float32), "bids") == taken(rows, "bids")


@pytest.mark.parametrize("seed", range(5))
def test_bids_is_its_formula(seed: int) -> None:
    """The naive twin: every row against every subtask, each time."""
    scores_MG = random_rows(seed)
    standard_MG = ((scores_MG - scores_MG.mean(axis=0)) / scores_MG.std(axis=0)).astype(np.float64)
    expected: list[int] = []
    while len(expected) < len(scores_MG):
        level_G = standard_MG[expected].mean(axis=0) if expected else np.zeros(scores_MG.shape[1])
        gain_M = (standard_MG - level_G).max(axis=1)
        gain_M[expected] = -np.inf
        best = gain_M.max()
        found = taken(scores_MG, "bids")[len(expected)]
        assert gain_M[found] == pytest.approx(best, abs=1e-5)
        expected.append(found)


@pytest.mark.parametrize("seed", range(5))
def test_round_robin_is_its_definition(seed: int) -> None:
    scores_MG = random_rows(seed)
    left = set(range(len(scores_MG)))
    expected = []
    while left:
        column = scores_MG[:, len(expected) % scores_MG.shape[1]]
        expected.append(min(left, key=lambda row: (-column[row], row)))
        left.remove(expected[-1])
    assert taken(scores_MG, "round_robin") == expected


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_row_is_taken_once(name: str) -> None:
    assert sorted(taken(random_rows(1), name)) == list(range(40))


@pytest.mark.parametrize("name", STRATEGIES)
def test_rows_of_equal_scores_keep_their_order(name: str) -> None:
    assert taken(np.ones((6, 3), dtype=np.float32), name) == list(range(6))


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_subtask_is_ordered_by_its_scores(name: str) -> None:
    scores_MG = random_rows(2)[:, :1]
    assert taken(scores_MG, name) == np.argsort(-scores_MG[:, 0], kind="stable").tolist()


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_rows_have_no_order(name: str) -> None:
    assert taken(np.empty((0, 3), dtype=np.float32), name) == []
