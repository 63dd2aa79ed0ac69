"""The house: few modules lie loose, and every package is entered by its face. Which imports may point where,
import-linter checks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "gradsift"
MODULES = sorted(SOURCE.rglob("*.py"))
ROOMS = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))
MOST_LOOSE, MOST_LINES = 10, 70


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that a file imports from gradsift."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gradsift":
            yield from ((str(node.module), alias.name) for alias in node.names)


def test_few_modules_lie_loose() -> None:
    assert len(list(SOURCE.glob("*.py"))) <= MOST_LOOSE


def test_other_packages_are_entered_by_their_faces() -> None:
    found = [(path, name) for path in MODULES for name, _ in imports(path) if name.count(".") > 1]
    assert [(path, name) for path, name in found if name.split(".")[1] != path.relative_to(SOURCE).parts[0]] == []


def test_private_names_stay_in_their_module() -> None:
    found = [(path, name) for path in MODULES for _, name in imports(path) if name.startswith("_")]
    assert {name for _, name in found} <= {"__version__"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_face_says_what_the_room_is_for_and_gives_its_names(room: str) -> None:
    face = import_module(f"gradsift.{room}")
    assert face.__doc__
    assert all(hasattr(face, name) for name in face.__all__)
    assert len((SOURCE / room / "__init__.py").read_text(encoding="utf-8").splitlines()) <= MOST_LINES
