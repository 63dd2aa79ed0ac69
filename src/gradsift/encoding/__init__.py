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
from gradsift.encoding.corpus import PROMPTS_FILE, SET_ASIDE_FILE, Corpus, write_corpus
from gradsift.encoding.encoder import EncodedRow, Encoder, EncodingConfig, SetAside
from gradsift.encoding.masks import IGNORED, NOWHERE, Span, answer_window, num_leading, supervised_tokens
from gradsift.encoding.refusals import mostly_shown
from gradsift.encoding.rendering import REFUSES, ConversationRefused

__all__ = [
    "IGNORED",
    "NOWHERE",
    "PROMPTS_FILE",
    "REFUSES",
    "SET_ASIDE_FILE",
    "Batch",
    "ConversationRefused",
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
    "mostly_shown",
    "num_fitting",
    "num_leading",
    "pad_rows",
    "supervised_tokens",
    "write_corpus",
]
