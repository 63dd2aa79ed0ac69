"""Progress of long work on the terminal: a bar, or plain lines with rate and time left."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

logger = logging.getLogger(__name__)

PLAIN_PROGRESS_SECONDS = 10.0


class Progress:
    """Rows done, rows and tokens a second, time left: a bar on a terminal, a line every 10 s elsewhere."""

    def __init__(self, label: str, total: int | None, unit: str = "rows") -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.tokens = self._before = 0
        self._start = self._spoken = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, desc=self.label, unit=f" {self.unit}", leave=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def resume(self, count: int) -> None:
        """Count what was done before this process; it doesn't enter the rate."""
        self.done = self._before = count
        if self._bar is not None:
            self._bar.update(count)
            self._bar.start_t = time.time()

    def advance(self, count: int, tokens: int = 0) -> None:
        """Count `count` more rows, of `tokens` tokens in all, as done."""
        self.done += count
        self.tokens += tokens
        if self._bar is not None:
            if self.tokens:
                self._bar.set_postfix_str(f"{self.tokens / self._elapsed():,.0f} tokens/s", refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._spoken >= PLAIN_PROGRESS_SECONDS:
            self._spoken = time.monotonic()
            logger.info(self.line())

    def line(self) -> str:
        """The state as one line of text."""
        rate = (self.done - self._before) / self._elapsed()
        parts = [f"{self.done:,}/{self.total:,} {self.unit}" if self.total else f"{self.done:,} {self.unit}"]
        parts.append(f"{rate:,.1f} {self.unit}/s")
        if self.tokens:
            parts.append(f"{self.tokens / self._elapsed():,.0f} tokens/s")
        if self.total and rate > 0:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        return f"{self.label}: {', '.join(parts)}"

    def _elapsed(self) -> float:
        return max(time.monotonic() - self._start, 1e-9)


def duration(seconds: float) -> str:
    """Seconds as `12 s`, `3:05` or `1:02:03`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
