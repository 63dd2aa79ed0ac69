"""BM25 by the library bm25s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradsift.baselines.texts import Scores, Texts
from gradsift.texts import words_in


def bm25(texts: Texts) -> Scores:
    """Mean score over the examples of each subtask, an example being a query: float32 [N, G]."""
    scores_NV = bm25_scores(texts.pool, texts.target)
    subtasks_V = np.asarray(texts.subtasks)
    columns = [scores_NV[:, subtasks_V == subtask].mean(axis=1) for subtask in range(texts.num_subtasks)]
    return np.stack(columns, axis=1)


def bm25_scores(documents: Sequence[str], queries: Sequence[str]) -> npt.NDArray[np.float32]:
    """Score of every document for every query, with bm25s' defaults (Lucene's variant, k1 1.5, b 0.75): [N, V].

    A word that stands twice in a query counts twice. Without a word in common the score is 0.
    """
    import bm25s

    index = bm25s.BM25()
    index.index([words_in(document) for document in documents], show_progress=False)
    return np.stack([_scores(index, words_in(query), len(documents)) for query in queries], axis=1)


def _scores(index: Any, query: list[str], num_documents: int) -> npt.NDArray[np.float32]:
    known = [word for word in query if word in index.vocab_dict]
    if not known:
        return np.zeros(num_documents, dtype=np.float32)
    scores: npt.NDArray[np.float32] = index.get_scores(known)
    return scores
