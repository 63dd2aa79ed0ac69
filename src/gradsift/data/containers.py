"""Containers: what rows are kept in, be it files or tables, where it is, and the raw rows that it gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from gradsift.errors import DataError

Content = bytes | Mapping[str, Any] | DataError
"""A row as its container holds it: a JSON line that isn't parsed yet, its columns, or why it can't be read."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where a container is, and what of it is meant."""

    place: str
    """File, folder, or name of a dataset on the hub."""
    split: str | None = None
    subset: str | None = None
    on_hub: bool | None = None
    """None: on the hub where nothing here has that name."""
    hub_options: Mapping[str, Any] = field(default_factory=dict)
    headerless: tuple[str, ...] = ()
    """Columns of a tab-separated file without a header."""


class RawRow(NamedTuple):
    """A row as its container holds it."""

    path: str
    line: int | None
    content: Content


class Container(Protocol):
    """Something that holds rows in an order of its own."""

    @property
    def label(self) -> str:
        """What errors call it."""

    def rows(self) -> Iterator[RawRow]:
        """All rows, in order."""

    def count(self) -> int:
        """How many."""

    def digests(self) -> list[str]:
        """SHA-256 of the content, in hex, one for each part."""
