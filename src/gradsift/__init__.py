"""gradsift: select the few percent of an instruction pool that teach a model the skill you need."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("gradsift")
except PackageNotFoundError:  # run from a source tree
    __version__ = "0.0.0"

__all__ = ["__version__"]
