"""DSIR against the authors' package and against the formula."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from gradsift.baselines.dsir import dsir, log_weights
from gradsift.baselines.texts import Texts

POOL = [
    "The cat sat on the mat; the mat was red.",
    "Dogs and cats (and cows)!",
    "a cat",
    "Une phrase en français, déjà-vu?",
    "3.14 + 2 = 5.14",
    "సమాధానం ఇవ్వండి 🧙\u200d♂️",
    "",
]
TARGET = ["The cat sat.", "Where is the red cat?"]


def test_weights_are_those_of_the_authors_package(tmp_path: Path) -> None:
    package = pytest.importorskip("data_selection")
    for name, texts in (("pool", POOL), ("target", TARGET)):
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    oracle = package.HashedNgramDSIR(
        [str(tmp_path / "pool")], [str(tmp_path / "target")], cache_dir=str(tmp_path / "cache"), num_proc=1
    )
    oracle.fit_importance_estimator(num_tokens_to_fit="all")
    expected = [oracle.importance_estimator(oracle.featurizer(text)) for text in POOL]
    assert log_weights(POOL, TARGET) == pytest.approx(np.array(expected), rel=1e-12, abs=1e-12)


def test_weights_follow_the_formula() -> None:
    """Of "a b": buckets of a, b and "a b"; p is the bucket's share among all n-grams of the pool or the target."""
    pool, target = ["a b", "c"], ["a", "d d"]
    ngrams_pool, ngrams_target = ["a", "b", "a b", "c"], ["a", "d", "d", "d d"]
    buckets = [
        int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10_000 for text in ("a", "b", "a b", "c", "d", "d d")
    ]
    assert len(set(buckets)) == 6  # no two share a bucket, so that the n-grams themselves can be counted

    def difference(ngram: str) -> float:
        in_target = ngrams_target.count(ngram) / len(ngrams_target)
        in_pool = ngrams_pool.count(ngram) / len(ngrams_pool)
        return float(np.log(in_target + 1e-8) - np.log(in_pool + 1e-8))

    expected = [difference("a") + difference("b") + difference("a b"), difference("c")]
    assert log_weights(pool, target) == pytest.approx(expected, rel=1e-12)


def test_a_text_without_words_has_weight_one() -> None:
    assert log_weights(POOL, TARGET)[-1] == 0


def test_texts_in_the_targets_words_are_drawn_first() -> None:
    """Log weights lie hundreds apart here: noise of temperature 1 changes nothing."""
    scores_NG = dsir(Texts(POOL, POOL, TARGET, [0, 1], seed=0))
    assert scores_NG[:, 0].tolist() == scores_NG[:, 1].tolist()
    assert scores_NG[0, 0] > scores_NG[3, 0]


def test_rows_of_equal_weight_are_drawn_by_the_seed() -> None:
    pool = ["the same text"] * 30
    first, again, other = (dsir(Texts(pool, pool, ["a target"], [0], seed)).argmax() for seed in (0, 0, 3))
    assert first == again != other
