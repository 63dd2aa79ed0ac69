"""What the fuzz tests share: how many cases, the same ones each time, and what no input may do to a command."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from gradsift.cli import main

LIMIT_SECONDS = 10
examples: int | None = None
"""`pytest --fuzz-examples N`: cases of each fuzz test; None: as many as it says itself."""

# A busy machine is no failure, and CI is to see the same cases each time; more of them are new ones.
settings.register_profile(
    "gradsift",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)


def cases(count: int) -> Callable[[Any], Any]:
    """Decorator: that many cases of a fuzz test, or as many as `--fuzz-examples` says."""
    return settings(settings.get_profile("gradsift"), max_examples=examples or count)


@contextlib.contextmanager
def time_limit(seconds: int = LIMIT_SECONDS) -> Iterator[None]:
    """Fails where the block takes longer."""

    def stop(*_: object) -> None:
        raise AssertionError(f"hangs: more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def survives(capsys: pytest.CaptureFixture[str], *arguments: object) -> int:
    """The exit status of a command that is done, or refused in one line, within the time; fails where it is neither."""
    capsys.readouterr()
    with time_limit():
        status = main([str(argument) for argument in arguments])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gradsift: ")]
    assert status in (0, 2), lines
    assert len(lines) == (1 if status == 2 else 0), lines
    return status
