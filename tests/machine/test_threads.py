"""Threads that compute side by side."""

from __future__ import annotations

import time

import torch

from gradsift.machine.threads import AHEAD, compute_threads


def test_results_of_threads_come_in_the_items_order() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0.0)
        return -item

    with compute_threads() as threads:
        assert list(threads.in_order(slow_first, range(20))) == [-item for item in range(20)]


def test_threads_take_few_items_ahead() -> None:
    items = iter(range(100))
    with compute_threads() as threads:
        next(threads.in_order(lambda item: item, items))
        assert next(items) == AHEAD * threads.count + 1


def test_torch_has_its_threads_again_afterwards() -> None:
    before = torch.get_num_threads()
    with compute_threads() as threads:
        inside = list(threads.in_order(lambda _: torch.get_num_threads(), range(3)))
    assert inside == [1, 1, 1]
    assert torch.get_num_threads() == before
