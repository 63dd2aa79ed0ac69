"""The lock on a run folder."""

from __future__ import annotations

import errno
import fcntl
import os
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


def test_a_folder_that_cannot_be_written_to_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path):
        pass
    assert "start no second gradsift there" in caplog.text


def test_a_file_in_the_run_folders_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(RunFolderError, match="is a file where a folder belongs"), locked(tmp_path / "run"):
        pass
