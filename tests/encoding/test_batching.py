"""Batches keep to their budget, hold every row once, and pad on the right."""

from __future__ import annotations

import random

import numpy as np
import torch

from gradsift.encoding.batching import FIRST_TOKENS, TokenBudget, batches_by_length, groups_of_like_length, pad_rows
from gradsift.encoding.encoder import EncodedRow
from gradsift.encoding.masks import IGNORED


def encoded(ids: list[int], labels: list[int]) -> EncodedRow:
    return EncodedRow("x", "pool", 0, None, np.asarray(ids, np.int32), np.asarray(labels, np.int32))


def test_every_row_stands_in_one_batch() -> None:
    lengths = random.Random(0).choices(range(1, 300), k=200)
    batches = batches_by_length(lengths, 1000, 64)
    assert sorted(position for batch in batches for position in batch) == list(range(200))


def test_padded_size_keeps_to_the_budget() -> None:
    lengths = random.Random(1).choices(range(1, 300), k=200)
    batches = batches_by_length(lengths, 1000, 64)
    assert all(len(batch) * max(lengths[position] for position in batch) <= 1000 for batch in batches)


def test_row_longer_than_the_budget_stands_alone() -> None:
    assert batches_by_length([5000, 10, 10], 1000, 64) == [[0], [1, 2]]


def test_no_batch_has_more_than_the_most_rows() -> None:
    assert [len(batch) for batch in batches_by_length([1] * 10, 1000, 4)] == [4, 4, 2]


def test_longest_rows_come_first() -> None:
    assert batches_by_length([1, 9, 5], 1, 64) == [[1], [2], [0]]


def test_padding_is_masked_and_not_supervised() -> None:
    batch = pad_rows([encoded([4, 5, 6], [IGNORED, 5, 6]), encoded([7], [IGNORED])])
    assert torch.equal(batch.attention_mask_BT, torch.tensor([[1, 1, 1], [1, 0, 0]]))
    assert torch.equal(batch.labels_BT, torch.tensor([[IGNORED, 5, 6], [IGNORED] * 3]))
    assert torch.equal(batch.input_ids_BT, torch.tensor([[4, 5, 6], [7, 0, 0]]))


def test_groups_hold_every_row_once_with_little_padding() -> None:
    lengths = random.Random(0).choices(range(1, 300), k=60)
    groups = groups_of_like_length(lengths)
    assert sorted(position for group in groups for position in group) == list(range(60))
    assert all(4 * lengths[position] >= 3 * lengths[group[0]] for group in groups for position in group)


def test_rows_of_one_length_are_one_group() -> None:
    assert groups_of_like_length([7, 7, 7]) == [[0, 1, 2]]


def test_part_of_a_batch_is_the_batch_of_those_rows() -> None:
    rows = [encoded([5, 6], [5, 6]), encoded([7, 8, 9], [IGNORED, 8, 9]), encoded([1, 2], [1, 2])]
    part, alone = pad_rows(rows).part([2, 0], 2), pad_rows([rows[2], rows[0]])
    for name in ("input_ids_BT", "attention_mask_BT", "labels_BT"):
        assert torch.equal(getattr(part, name), getattr(alone, name))


def test_a_budget_on_a_cpu_stays() -> None:
    budget = TokenBudget("auto", "cpu")
    budget.succeeded(FIRST_TOKENS, None)
    assert budget.tokens == FIRST_TOKENS


def test_a_budget_grows_while_a_card_has_room() -> None:
    budget = TokenBudget("auto", "cuda")
    budget.succeeded(FIRST_TOKENS, 0.1)
    budget.succeeded(10, 0.1)  # a small batch says nothing
    assert budget.tokens == 2 * FIRST_TOKENS
    budget.succeeded(2 * FIRST_TOKENS, 0.5)
    budget.succeeded(2 * FIRST_TOKENS, 0.1)
    assert budget.tokens == 2 * FIRST_TOKENS


def test_a_budget_is_half_of_the_batch_that_did_not_fit() -> None:
    budget = TokenBudget("auto", "cuda")
    budget.failed(3000)
    budget.succeeded(1500, 0.1)
    assert budget.tokens == 1500


def test_a_budget_that_was_given_does_not_grow() -> None:
    budget = TokenBudget(1000, "cuda")
    budget.succeeded(1000, 0.1)
    assert budget.tokens == 1000
