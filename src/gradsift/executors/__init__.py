"""Executors: who does the work units."""

from __future__ import annotations

from gradsift.executors.local import Report
from gradsift.executors.settings import ExecutorConfig
from gradsift.executors.units import finish_units

__all__ = [
    "ExecutorConfig",
    "Report",
    "finish_units",
]
