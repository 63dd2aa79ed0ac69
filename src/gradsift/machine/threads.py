"""Threads that compute side by side, with results that don't depend on how many there are."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import TypeVar

AHEAD = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


class Threads:
    """Threads that compute side by side.

    Where there are more than cores, what computes for long holds `core` meanwhile: threads that take turns on a core
    at every call into torch take each other's cache.
    """

    def __init__(self, count: int, pool: ThreadPoolExecutor, num_cores: int) -> None:
        self.count, self.core, self._pool = count, BoundedSemaphore(num_cores), pool

    def in_order(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`function` of every item, in the items' order; two items a thread are taken ahead, and no more."""
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(function, item))
                if len(waiting) > AHEAD * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextlib.contextmanager
def compute_threads(per_core: int = 1) -> Iterator[Threads]:
    """As many threads as torch would use for one product (OMP_NUM_THREADS, else the cores), times `per_core`: more
    than one where threads wait for a disk.

    Each runs torch on one thread, so that what it computes doesn't depend on how many there are. So does the
    calling thread meanwhile: torch's own threads wait by spinning, on the cores that these need.
    """
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count * per_core, "compute", torch.set_num_threads, (1,)) as pool:
            yield Threads(count * per_core, pool, count)
    finally:
        torch.set_num_threads(count)
