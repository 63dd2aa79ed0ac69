"""gradsift: select the few percent of an instruction pool that teach a model the skill you need.

`load_config`, `run`, `compare` and the errors are for everyone; everything below is internal, but for what
docs/extending.md names.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from gradsift.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    GradsiftError,
    RunFolderError,
    StoreDamaged,
    StoreMismatch,
    TemplateError,
    UserError,
    WorkerLost,
)
from gradsift.machine import wait_politely

if TYPE_CHECKING:
    from gradsift.comparison import compare
    from gradsift.config import load_config
    from gradsift.pipeline import run

try:
    __version__ = version("gradsift")
except PackageNotFoundError:  # run from a source tree
    __version__ = "0.0.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GradsiftError",
    "RunFolderError",
    "StoreDamaged",
    "StoreMismatch",
    "TemplateError",
    "UserError",
    "WorkerLost",
    "__version__",
    "compare",
    "load_config",
    "run",
]

_HOMES = {"compare": "gradsift.comparison", "load_config": "gradsift.config", "run": "gradsift.pipeline"}
"""Where the names are that are loaded when they are asked for: torch and transformers take seconds."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    wait_politely()
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
