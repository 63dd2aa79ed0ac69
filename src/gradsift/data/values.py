"""Values of a row: text, flags and lists, checked; the errors say what is there instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from gradsift.data.jsontext import Number
from gradsift.errors import DataError

Fields = Mapping[str, Any]
"""A row under the format's own field names."""

MAX_LISTED, MAX_NAME, MAX_SHOWN = 20, 40, 500


def missing_column(field: str, columns: Mapping[str, str], there_are: Iterable[str]) -> str:
    """The text of the error about a field whose column isn't there."""
    column = columns.get(field, field)
    wanted = f"no column {column!r}" + (f" for {field}" if column != field else "")
    return f"{wanted}; the columns there are: {listed(there_are)}"


def listed(names: Iterable[str]) -> str:
    """Names in one line, however many and long they are."""
    lines = [re.sub(r"[\r\n]+", "⏎", str(name)) for name in names]
    cut = [name if len(name) <= MAX_NAME else name[:MAX_NAME] + "…" for name in lines[:MAX_LISTED]]
    return ", ".join([*cut, "…"] if len(lines) > MAX_LISTED else cut) or "none"


def shown(value: object) -> str:
    """The text of a value or an error, short enough for a list and in characters that UTF-8 has."""
    text = str(value)
    cut = text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"
    return cut.encode(errors="backslashreplace").decode()


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def name_of(value: Any, what: str) -> str:
    """The value as a name, numbers and all else by their text; raises DataError where that can't be written."""
    return checked_text(value if isinstance(value, str) else str(value), what)


def text_of(fields: Fields, name: str) -> str:
    """The text in a field; raises DataError where it is something else."""
    return checked_text(fields[name], name)


def optional_text(fields: Fields, name: str) -> str:
    """The text in a field; empty where there is none."""
    value = fields.get(name)
    return "" if value is None else checked_text(value, name)


def checked_text(value: Any, what: str) -> str:
    """The value, which must be text that can be written as UTF-8; raises DataError, calling it `what`."""
    if value is None:
        raise DataError(f"{what} is null, not text")
    if not isinstance(value, str):
        raise DataError(f"{what} is {kind_of(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} has half of a surrogate pair at character {error.start}") from error
    return value


def flag_of(fields: Fields, name: str) -> bool | None:
    """True, False, or None where it isn't said; tables without types spell them out."""
    value = fields.get(name)
    if isinstance(value, str) and value.lower() in ("true", "false", ""):
        return {"true": True, "false": False, "": None}[value.lower()]
    if value is None or isinstance(value, bool):
        return value
    raise DataError(f"{name} is {kind_of(value)}, not true or false")


def checked_list(value: Any, what: str) -> list[Any]:
    """The value, which must be a list; raises DataError, calling it `what`."""
    if not isinstance(value, list | tuple):
        raise DataError(f"{what} is {'null' if value is None else kind_of(value)}, not a list")
    return list(value)


def kind_of(value: Any) -> str:
    """What JSON calls a value of this type, in words."""
    if isinstance(value, bool):
        return "true or false"
    names = {str: "text", dict: "an object", list: "a list", int: "a number", float: "a number", Number: "a number"}
    return names.get(type(value), type(value).__name__)
