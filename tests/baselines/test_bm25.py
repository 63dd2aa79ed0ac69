"""BM25 against bm25s itself and against the formula."""

from __future__ import annotations

import math

import bm25s
import numpy as np
import pytest

from gradsift.baselines.bm25 import bm25, bm25_scores
from gradsift.baselines.texts import Texts

POOL = ["the cat sat on the mat", "dogs and cats", "a cat a cat a cat", "unrelated words here", "the mat of the dog"]


def test_scores_are_those_of_bm25s() -> None:
    index = bm25s.BM25()
    index.index([text.split() for text in POOL], show_progress=False)
    expected = index.get_scores(["cat", "mat"])
    assert bm25_scores(POOL, ["cat mat"])[:, 0] == pytest.approx(expected, rel=1e-6)


def test_ranking_is_that_of_bm25s_retrieve() -> None:
    index = bm25s.BM25()
    index.index([text.split() for text in POOL], show_progress=False)
    ranked, _ = index.retrieve([["cat", "mat"]], k=3, show_progress=False)
    ours = np.argsort(-bm25_scores(POOL, ["cat mat"])[:, 0], kind="stable")[:3]
    assert ours.tolist() == ranked[0].tolist()


def test_scores_follow_lucenes_formula() -> None:
    """idf = ln(1 + (N - n + ½) / (n + ½)); tf / (tf + k1 (1 - b + b |d| / mean|d|)), k1 1.5, b 0.75."""
    lengths = [len(text.split()) for text in POOL]
    num_with_cat = 2
    idf = math.log(1 + (len(POOL) - num_with_cat + 0.5) / (num_with_cat + 0.5))
    scale = 1.5 * (0.25 + 0.75 * lengths[2] / (sum(lengths) / len(lengths)))
    assert bm25_scores(POOL, ["cat"])[2, 0] == pytest.approx(idf * 3 / (3 + scale), rel=1e-5)


def test_a_query_without_a_known_word_scores_zero() -> None:
    assert not bm25_scores(POOL, ["zebra"]).any()


def test_a_subtask_is_the_mean_of_its_examples() -> None:
    scores = bm25_scores(POOL, ["cat", "mat", "dog"])
    found = bm25(Texts(POOL, POOL, ["cat", "mat", "dog"], [0, 0, 1], seed=0))
    assert found[:, 0] == pytest.approx(scores[:, :2].mean(axis=1))
    assert found[:, 1] == pytest.approx(scores[:, 2])
