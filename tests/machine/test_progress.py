"""Progress and durations."""

from __future__ import annotations

import pytest

from gradsift.machine.progress import Progress, duration


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
