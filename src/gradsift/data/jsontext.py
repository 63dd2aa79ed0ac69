"""JSON text: read with numbers of any size, and written from whatever a table holds."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from typing import Any

from gradsift.errors import DataError

MAX_DEPTH = 200
"""Levels of nesting. A bound of our own, since Python's depends on who calls: what was read once is read again."""
MAX_DIGITS = 640
"""Digits that every Python turns into an int, whatever its own limit is set to."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number that no int or float of Python stands for, by its digits."""

    digits: str

    def __str__(self) -> str:
        return self.digits


def parsed_json(text: str) -> Any:
    """The value. Raises json.JSONDecodeError, and DataError (without a place) where it is nested too deeply."""
    if _is_deep(text):
        raise DataError(f"is not read: its JSON is nested too deeply, more than {MAX_DEPTH} levels")
    return _DECODER.decode(text)


def json_text(value: Any) -> str:
    """The value as JSON in one line: NaN and the infinities as null, dates in ISO 8601, bytes in base64, decimals with
    all their digits; anything else that JSON lacks as its text."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else "null"
    if isinstance(value, int | Number):
        return str(value)
    if isinstance(value, Decimal):
        return str(value) if value.is_finite() else "null"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_string(str(key))}: {json_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(json_text, value)) + "]"
    return _string(_text_of(value))


def without_constants(line: bytes) -> bytes:
    """A line that Python reads as JSON, with null for NaN and the infinities, which JSON lacks; else as it stands."""
    if b"NaN" not in line and b"Infinity" not in line:
        return line
    return _CONSTANTS.sub(lambda found: found[0] if found[0].startswith(b'"') else b"null", line)


def _is_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    depth = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


def _int(digits: str) -> int | Number:
    return int(digits) if len(digits) <= MAX_DIGITS else Number(digits)


def _float(digits: str) -> float | Number:
    value = float(digits)
    return value if math.isfinite(value) else Number(digits)


def _string(text: str) -> str:
    quoted = json.dumps(text, ensure_ascii=False)
    # Half of a surrogate pair has no UTF-8, but an escape.
    return quoted if text.isascii() or _is_whole(text) else json.dumps(text)


def _is_whole(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _text_of(value: Any) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, date | time) else str(value)


_DECODER = json.JSONDecoder(parse_int=_int, parse_float=_float)
_STRINGS = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BRACKETS = re.compile(r"[\[\]{}]")
_CONSTANTS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|NaN|-?Infinity', re.DOTALL)
