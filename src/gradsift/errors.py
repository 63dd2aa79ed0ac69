"""The exceptions that gradsift raises: one small tree, each carrying the value, the place and the remedy.

`UserError` and its children mean that the input is at fault: the command line prints them in one line and
exits with status 2. Anything else is our own mistake and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class GradsiftError(Exception):
    """Root of the tree."""


class UserError(GradsiftError):
    """The user's input is wrong; the message says what, where, and what to do."""


class ConfigError(UserError):
    """A config key or value that can't be used."""


class DataError(UserError):
    """A pool or target file that can't be read as examples."""

    def __init__(self, message: str, path: str | Path | None = None, line: int | None = None) -> None:
        self.path, self.line = path, line
        place = "" if path is None else f"{path}: " if line is None else f"{path}, line {line}: "
        super().__init__(place + message)


class TemplateError(UserError):
    """A chat template whose assistant text can't be told apart from the rest."""


class CheckpointError(UserError):
    """A checkpoint that doesn't fit the model, or lacks what is needed from it."""


class StoreMismatch(UserError):
    """Two feature stores whose rows mean different things."""

    def __init__(self, field: str, left: object, right: object, where: str = "") -> None:
        self.field, self.left, self.right = field, left, right
        place = f" ({where})" if where else ""
        super().__init__(f"feature stores differ in {field}: {left!r} against {right!r}{place}")


class StoreDamaged(UserError):
    """A feature store whose files don't match its manifest."""


class RunFolderError(UserError):
    """A run folder that can't be used with this config, or one of whose files is damaged."""


class WorkerLost(GradsiftError):
    """A worker process ended without a word (killed, or out of memory)."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Hint `; did you mean 'x'?` for the known word nearest to `word`, or the list of known ones."""
    options = sorted(known)
    match = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else f"; known: {', '.join(options)}"
