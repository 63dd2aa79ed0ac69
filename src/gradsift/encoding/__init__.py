"""Rows as a model sees them: chat templates, masks, token ids and labels, and batches of them."""

from __future__ import annotations

from gradsift.encoding.batching import (
    Batch,
    TokenBudget,
    batches_by_length,
    by_length,
    groups_of_like_length,
    num_fitting,
    pad_rows,
)
from gradsift.encoding.corpus import PROMPTS_FILE, Corpus, write_corpus
from gradsift.encoding.encoder import EncodedRow, Encoder, EncodingConfig, SetAside
from gradsift.encoding.masks import IGNORED, Span, answer_window, num_leading, supervised_tokens

__all__ = [
    "IGNORED",
    "PROMPTS_FILE",
    "Batch",
    "Corpus",
    "EncodedRow",
    "Encoder",
    "EncodingConfig",
    "SetAside",
    "Span",
    "TokenBudget",
    "answer_window",
    "batches_by_length",
    "by_length",
    "groups_of_like_length",
    "num_fitting",
    "num_leading",
    "pad_rows",
    "supervised_tokens",
    "write_corpus",
]
