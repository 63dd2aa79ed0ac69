"""DSIR: data selection by importance resampling over hashed n-grams, arXiv 2302.03169."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import regex

from gradsift.baselines.texts import Scores, Texts

NUM_BUCKETS = 10_000
SMOOTHING = 1e-8
"""Added to every bucket's probability, as the authors' package does."""

TOKEN = regex.compile(r"\w+|[^\w\s]+")
"""Runs of letters, marks and digits, and runs of punctuation: the package's `wordpunct`, by the module `regex` as NLTK
has it; by `re` a vowel sign would end a word."""


def dsir(texts: Texts) -> Scores:
    """Log importance weight and Gumbel noise, the same for all subtasks: float32 [N, G].

    The best k are then a draw of k rows without replacement with odds of their weights. The target is one
    distribution: a subtask's few examples are too few for one of their own. Deviates from the package where that
    leaves out texts of fewer than 100 tokens: instruction rows are short.
    """
    noise_N = np.random.default_rng([texts.seed, len(texts.pool)]).gumbel(size=len(texts.pool))
    score_N = (log_weights(texts.pool, texts.target) + noise_N).astype(np.float32)
    return np.repeat(score_N[:, None], texts.num_subtasks, axis=1)


def log_weights(pool: Sequence[str], target: Sequence[str]) -> npt.NDArray[np.float64]:
    """log p(text) by the target's n-grams less that by the pool's, each n-gram counted as its bucket: float64 [N]."""
    buckets = [_buckets(text) for text in pool]
    target_B = _probabilities([_buckets(text) for text in target])
    difference_B = np.log(target_B + SMOOTHING) - np.log(_probabilities(buckets) + SMOOTHING)
    return np.array([difference_B[found].sum() for found in buckets])


def _buckets(text: str) -> npt.NDArray[np.uint16]:
    """The buckets of a text's words and pairs of words, in lower case; one for each time that they stand there."""
    tokens = TOKEN.findall(text.lower())
    pairs = (f"{left} {right}" for left, right in pairwise(tokens))
    return np.array([_bucket(ngram) for ngram in (*tokens, *pairs)], dtype=np.uint16)


def _bucket(ngram: str) -> int:
    return int.from_bytes(hashlib.sha256(ngram.encode(errors="surrogatepass")).digest()) % NUM_BUCKETS


def _probabilities(texts: Sequence[npt.NDArray[np.uint16]]) -> npt.NDArray[np.float64]:
    """Share of every bucket, float64 [10000]; all zero where there are no words."""
    counts_B = np.zeros(NUM_BUCKETS)
    for buckets in texts:
        np.add.at(counts_B, buckets, 1)
    counts_B /= max(1.0, counts_B.sum())
    return counts_B
