"""The lock on a run folder."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from gradsift.errors import RunFolderError
from gradsift.machine.lock import locked


def test_second_process_in_a_run_folder_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RunFolderError, match="another gradsift process"), locked(tmp_path):
        pass


def test_lock_is_free_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path):
            pass


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
