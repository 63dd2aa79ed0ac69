"""Progress, durations and the lock on a run folder."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

from gradsift.errors import RunFolderError
from gradsift.runtime import AHEAD, Progress, compute_threads, duration, locked


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59, "59 s"), (185, "3:05"), (3723, "1:02:03")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_progress_says_rows_rates_and_time_left() -> None:
    progress = Progress("features", 100)
    progress.advance(25, tokens=500)
    line = progress.line()
    assert line.startswith("features: 25/100 rows, ")
    assert "rows/s" in line
    assert "tokens/s" in line
    assert line.endswith("left")


def test_second_process_in_a_run_folder_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RunFolderError, match="another gradsift process"), locked(tmp_path):
        pass


def test_lock_is_free_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path):
            pass


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


def test_a_folder_that_is_held_can_be_waited_for(tmp_path: Path) -> None:
    entered = threading.Event()

    def wait() -> None:
        with locked(tmp_path, wait=True):
            entered.set()

    with locked(tmp_path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not entered.wait(0.2)
    waiting.join(10)
    assert entered.is_set()
