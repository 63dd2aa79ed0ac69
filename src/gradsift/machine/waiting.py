"""How torch's threads wait for one another: OpenMP lets them spin first, which a busy machine pays for."""

from __future__ import annotations

import os

SPIN_COUNT = 10_000
"""Turns that a waiting thread spins before it sleeps. GNU OpenMP's own count keeps a core for milliseconds, in which
another process could have run; beside one that is busy a training step takes ten times as long then. With this one
idle cores lose next to nothing (benchmarks/waiting.py)."""
USERS_OWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""Environment variables by which the user decides; theirs stand."""


def wait_politely() -> None:
    """Let threads that wait sleep soon, in this process and those it starts.

    Without effect once torch is loaded: OpenMP reads the environment when it is.
    """
    if not any(name in os.environ for name in USERS_OWN):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
