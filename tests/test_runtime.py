"""Progress, durations and the lock on a run folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradsift.errors import RunFolderError
from gradsift.runtime import Progress, duration, locked


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
