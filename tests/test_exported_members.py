"""The public surface: what `import gradsift` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import gradsift
from gradsift import errors

HEAVY = {"torch", "transformers", "pydantic", "numpy", "datasets", "pyarrow"}


def test_the_names_are_these() -> None:
    assert sorted(gradsift.__all__) == [
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


@pytest.mark.parametrize("name", gradsift.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(gradsift, name) is not None
    assert name in dir(gradsift)


def test_the_functions_are_those_that_do_the_work() -> None:
    from gradsift.comparison.run import compare
    from gradsift.config import load_config
    from gradsift.pipeline import run

    assert (gradsift.compare, gradsift.load_config, gradsift.run) == (compare, load_config, run)


def test_every_error_of_the_tree_is_given() -> None:
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert tree <= set(gradsift.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'select'"):
        _ = gradsift.select


@pytest.mark.parametrize("module", ["gradsift", "gradsift.cli"])
def test_import_loads_no_heavy_library(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
