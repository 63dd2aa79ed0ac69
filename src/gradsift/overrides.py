"""Overrides: `a.b.c=value` of the command line, set in what a config's YAML says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from gradsift.errors import ConfigError
from gradsift.yaml_text import parsed_yaml

MAX_PARENTS = 20
"""Parts of a key before its last."""
MAX_SHOWN = 200
"""Characters of a key or value in an error."""


def override_values(values: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` in a config's values; lists are addressed by position or by the `name` of their entry.

    Raises ConfigError in one line.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"{override[:MAX_SHOWN]!r} is not key=value")
    try:
        value = parsed_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{override[:MAX_SHOWN]!r}: the value {error}") from error
    *parents, last = key.split(".")
    if len(parents) > MAX_PARENTS:
        raise ConfigError(f"{key[:MAX_SHOWN]}: there is no such place in the config")
    _list_what_stands_alone(values, parents)
    place: Any = values
    for part in parents:
        place = _step(place, part, key)
    if isinstance(place, list):
        _step(place, last, key)
        place[_position(place, last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ConfigError(f"{key}: there is no such place in the config")


def _list_what_stands_alone(values: dict[str, Any], parents: Sequence[str]) -> None:
    """One source or target, written without a list, can be addressed as the list's only entry."""
    section, *below = parents or [""]
    alone = values.get(section) if section in ("pool", "targets") else None
    if isinstance(alone, dict) and below and (below[0].isdecimal() or below[0] == alone.get("name")):
        values[section] = [alone]


def _step(place: Any, part: str, key: str) -> Any:
    if isinstance(place, list):
        position = _position(place, part)
        if position is None:
            raise ConfigError(f"{key}: the list has no entry {part!r}")
        return place[position]
    if not isinstance(place, dict):
        raise ConfigError(f"{key}: there is no such place in the config")
    if place.get(part) is None:
        place[part] = {}
    return place[part]


def _position(entries: list[Any], part: str) -> Any:
    if re.fullmatch("[0-9]{1,6}", part):
        return int(part) if int(part) < len(entries) else None
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    return names.index(part) if part in names else None
