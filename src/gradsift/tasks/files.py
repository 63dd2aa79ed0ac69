"""Files of a target: finds them in the authors' folders and gives back their rows, checked field by field."""

from __future__ import annotations

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gradsift.data import parsed_json
from gradsift.errors import DataError

VALIDATION_SPLIT = "val"
TEST_SPLIT = "test"


@dataclass(frozen=True, slots=True)
class Row:
    """A JSON object and the place it stands at, so that a wrong field is named with both."""

    fields: dict[str, Any]
    path: Path
    line: int | None = None
    """Line in the file, from 1; None in a file that isn't read line by line."""
    label: str = ""
    """What to call the row where there is no line."""

    @property
    def id(self) -> str | None:
        """The user's id as text; None where there is none."""
        value = self.fields.get("id")
        return None if value is None else str(value)

    def text(self, name: str) -> str:
        """The field as it stands; `DataError` where it is absent, blank or not text."""
        value = self._field(name)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"field {name!r} is {value!r}; it must be text that isn't blank")
        return value

    def items(self, name: str) -> list[Any]:
        """The field as a list; `DataError` where it is absent, empty or no list."""
        value = self._field(name)
        if not isinstance(value, list) or not value:
            raise self.error(f"field {name!r} is {value!r}; it must be a list that isn't empty")
        return value

    def error(self, message: str) -> DataError:
        """A `DataError` that names the row's place."""
        return DataError(f"{self.label}: {message}" if self.label else message, self.path, self.line)

    def _field(self, name: str) -> Any:
        if name not in self.fields:
            raise self.error(f"no field {name!r}; the fields there are: {', '.join(self.fields) or 'none'}")
        return self.fields[name]


def target_files(path: Path, task: str, patterns: tuple[str, ...], without: tuple[str, ...] = ()) -> list[Path]:
    """The file that `path` is, or the files of the first pattern that fits in the folder, sorted.

    A folder may be the task's own, the one that holds it (`<task>/`), or the authors' data folder
    (`eval/<task>/`). Files named in `without` don't count. `DataError`, naming what was looked for, where
    there is nothing.
    """
    if path.is_file():
        return [path]
    if path.exists() and not path.is_dir():
        raise DataError("is neither a file nor a folder", path)
    if not path.is_dir():
        raise DataError("no such file or folder", path)
    wanted = [folder + pattern for folder in ("", f"{task}/", f"eval/{task}/") for pattern in patterns]
    for pattern in wanted:
        if found := sorted(file for file in path.glob(pattern) if file.name not in without):
            return found
    raise DataError(f"this folder holds no {task} examples; looked for {', '.join(wanted)}", path)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[str]]:
    """The file as UTF-8 text with its line ends untouched, unpacked where it is `.gz`."""
    if path.exists() and not path.is_file():
        raise DataError("is no file", path)
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as file:
                yield file
        else:
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield file
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"can't be read: {error}", path) from error


def is_json(path: Path) -> bool:
    """Whether the name is that of one JSON document: `.json` or `.json.gz`."""
    return path.name.removesuffix(".gz").endswith(".json")


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object that the whole file is."""
    with opened(path) as file:
        text = file.read()
    return _parsed(text, path)


def validation_rows(path: Path) -> list[Row]:
    """The rows of a JSONL file whose `split` is "val"; all of them where the file has no `split`."""
    rows = _rows(path)
    if not _have_splits(rows):
        return rows
    return _of_split(rows, VALIDATION_SPLIT, "a target without examples", path)


def held_out_rows(path: Path, shots_path: Path) -> list[Row]:
    """The rows of a JSONL file whose `split` is "test".

    All of them where the file has no `split` and isn't the one that the shots come from; `DataError` where it is,
    for nothing is held out then.
    """
    rows = _rows(path)
    if _have_splits(rows):
        return _of_split(rows, TEST_SPLIT, "a target without held-out items", path)
    if path.resolve() == shots_path.resolve():
        raise DataError(
            f"no row has a split, so none is held out: mark rows with split {TEST_SPLIT!r} and {VALIDATION_SPLIT!r}, "
            "or give the target a test_path",
            path,
        )
    return rows


def _have_splits(rows: list[Row]) -> bool:
    return any("split" in row.fields for row in rows)


def _of_split(rows: list[Row], split: str, problem: str, path: Path) -> list[Row]:
    chosen = [row for row in rows if row.text("split") == split]
    if not chosen:
        splits = ", ".join(sorted({row.text("split") for row in rows}))
        raise DataError(f"{problem}: no row has split {split!r}; the splits are: {splits}", path)
    return chosen


def _rows(path: Path) -> list[Row]:
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise DataError("neither JSONL (.jsonl, .jsonl.gz) nor a file of the authors' layout", path)
    with opened(path) as file:
        return [Row(_parsed(text, path, line), path, line) for line, text in enumerate(file, start=1) if text.strip()]


def _is_writable(value: Any) -> bool:
    """Whether UTF-8 has all characters of its texts."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


def _parsed(text: str, path: Path, line: int | None = None) -> dict[str, Any]:
    try:
        value = parsed_json(text)
    except json.JSONDecodeError as error:
        place = error.lineno if line is None else line
        raise DataError(f"broken JSON: {error.msg}", path, place) from error
    except DataError as error:
        raise DataError(str(error), path, line) from error
    if "\\u" in text and not _is_writable(value):
        raise DataError("holds half of a surrogate pair", path, line)
    if not isinstance(value, dict):
        raise DataError(f"not a JSON object but {type(value).__name__}", path, line)
    return value
