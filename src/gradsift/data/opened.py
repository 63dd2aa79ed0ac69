"""Opened sources: their format found, what an example is made of, one by one, and the lines that are written back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

from gradsift.data.containers import Container, RawRow
from gradsift.data.example import Example
from gradsift.data.files import decoded
from gradsift.data.formats import ROW_FIELDS, Format, fields_of, recognise
from gradsift.data.jsontext import json_text, parsed_json, without_constants
from gradsift.data.message_trees import Conversation, Node, conversations
from gradsift.data.opening import open_container
from gradsift.data.source_settings import SourceConfig, SourceSettings, settings_of
from gradsift.data.turns import tools_of
from gradsift.data.values import missing_column, name_of
from gradsift.errors import ConfigError, DataError, nearest

NUM_PEEKED = 1000
"""Rows looked at to find out which columns there are."""


class Place(NamedTuple):
    """Where a row stands, for errors."""

    path: str
    line: int | None
    row: int

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}" if self.line is not None else f"{self.path}, row {self.row}"


class Opened(Protocol):
    """A source whose format is known."""

    @property
    def label(self) -> str:
        """What errors call it."""

    @property
    def layout(self) -> _Layout:
        """How its rows are read."""

    def items(self) -> Iterator[Any]:
        """What an example is made of, one by one: its position is the example's row."""

    def count(self) -> int:
        """How many they are."""

    def place(self, row: int, item: Any) -> Place:
        """Where an item stands."""

    def example(self, row: int, item: Any) -> Example:
        """Raises DataError without a place."""

    def id_of(self, row: int, item: Any) -> str:
        """The user's id of a row that gives no example, where that can be read; else its position."""

    def line(self, row: int, item: Any) -> bytes:
        """The item as a JSON line, without its end."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """The rows of a container and how they are read."""

    settings: SourceSettings
    container: Container
    form: Format
    """Format of the rows."""

    def fields(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        return fields_of(columns, self.form, self.settings.columns)


def _columns_of(raw: RawRow) -> Mapping[str, Any]:
    """A row as an object. Raises DataError without a place."""
    if isinstance(raw.content, DataError):
        raise raw.content
    value = raw.content if not isinstance(raw.content, bytes) else _parsed(raw.content)
    if not isinstance(value, dict):
        raise DataError(f"is {'null' if value is None else f'a {type(value).__name__}'}, not an object with columns")
    return value


def _parsed(line: bytes) -> Any:
    try:
        return parsed_json(decoded(line))
    except json.JSONDecodeError as error:
        raise DataError(f"is not valid JSON: {error.msg} at column {error.colno}") from error


def placed(error: DataError, place: Place) -> DataError:
    """The error with its place, which the pure functions that raise it don't know."""
    if place.line is not None:
        return DataError(str(error), place.path, place.line)
    return DataError(str(error), f"{place.path}, row {place.row}")


@dataclass(frozen=True, slots=True)
class _RowSource:
    """A row is an example."""

    layout: _Layout
    label: str

    def items(self) -> Iterator[RawRow]:
        return self.layout.container.rows()

    def count(self) -> int:
        return self.layout.container.count()

    def place(self, row: int, item: RawRow) -> Place:
        return Place(item.path, item.line, row)

    def id_of(self, row: int, item: RawRow) -> str:
        try:
            return _given_id(_columns_of(item), self._id_column) or _position(row)
        except DataError:
            return _position(row)

    @property
    def _id_column(self) -> str:
        return self.layout.settings.columns.get("id", "id")

    def example(self, row: int, item: RawRow) -> Example:
        columns = _columns_of(item)
        to_messages = self.layout.form.messages
        assert to_messages is not None
        names, fields = self.layout.settings.columns, self.layout.fields(columns)
        return Example(
            id=_row_id(row, columns, self._id_column),
            messages=to_messages(fields),
            source=self.layout.settings.name,
            row=row,
            subtask=_subtask(columns, names["subtask"]) if "subtask" in names else None,
            tools=tools_of(fields),
        )

    def line(self, row: int, item: RawRow) -> bytes:
        if isinstance(item.content, bytes):
            return without_constants(item.content)
        return json_text(_columns_of(item)).encode()


def _row_id(row: int, columns: Mapping[str, Any], column: str) -> str:
    """The user's id, else one made of the row's position and content."""
    given = _given_id(columns, column)
    if given:
        return given
    content = json.dumps(columns, sort_keys=True, ensure_ascii=False, default=str)
    return f"{_position(row)}-{hashlib.sha256(content.encode(errors='surrogatepass')).hexdigest()[:12]}"


def _given_id(columns: Mapping[str, Any], column: str) -> str | None:
    """Raises DataError where it can't be written as UTF-8."""
    given = columns.get(column)
    return None if given is None else name_of(given, column)


def _position(row: int) -> str:
    return f"{row:07d}"


def _subtask(columns: Mapping[str, Any], column: str) -> str:
    value = columns.get(column)
    if value is None:
        raise DataError(f"has no subtask: no value in column {column!r}")
    return name_of(value, column)


@dataclass(frozen=True, slots=True)
class _BadItem:
    """A row of a tree source that can't be read: what is in it is part of no conversation."""

    place: Place
    error: DataError


@dataclass(frozen=True, slots=True)
class _TreeSource:
    """A path through a tree of messages is an example; its position is that among all such paths and bad rows."""

    layout: _Layout
    label: str

    def items(self) -> Iterator[Conversation | _BadItem]:
        """Where a tree is more than a row, the bad rows come before all conversations."""
        language = self.layout.settings.language
        if self.layout.form.tree_per_row:
            for place, nodes in self._nodes_by_row():
                yield from _conversations(nodes, language, place)
        else:
            yield from self._of_table(language)

    def count(self) -> int:
        return sum(1 for _ in self.items())

    def _of_table(self, language: str | None) -> Iterator[Conversation | _BadItem]:
        table: list[Node] = []
        for place, nodes in self._nodes_by_row():
            if isinstance(nodes, DataError):
                yield _BadItem(place, nodes)
            else:
                table += nodes
        try:
            yield from conversations(table, language)
        except DataError as error:
            raise DataError(str(error), self.label) from error

    def _nodes_by_row(self) -> Iterator[tuple[Place, list[Node] | DataError]]:
        """The messages in each row, or why there are none."""
        to_nodes = self.layout.form.nodes
        assert to_nodes is not None
        for row, raw in enumerate(self.layout.container.rows()):
            place = Place(raw.path, raw.line, row)
            try:
                yield place, to_nodes(self.layout.fields(_columns_of(raw)))
            except DataError as error:
                yield place, error

    def place(self, row: int, item: Conversation | _BadItem) -> Place:
        return item.place if isinstance(item, _BadItem) else Place(self.label, None, row)

    def id_of(self, row: int, item: Conversation | _BadItem) -> str:
        return _position(row) if isinstance(item, _BadItem) else item.id

    def example(self, row: int, item: Conversation | _BadItem) -> Example:
        if isinstance(item, _BadItem):
            raise item.error
        return Example(item.id, item.messages, self.layout.settings.name, row)

    def line(self, row: int, item: Conversation) -> bytes:
        return json_text({"id": item.id, "source": self.layout.settings.name, "messages": item.messages}).encode()


def _conversations(
    nodes: list[Node] | DataError, language: str | None, place: Place
) -> Iterator[Conversation | _BadItem]:
    """Those of a tree; a bad item where it is no tree."""
    try:
        if isinstance(nodes, DataError):
            raise nodes
        yield from list(conversations(nodes, language))
    except DataError as error:
        yield _BadItem(place, error)


def open_source(source: SourceConfig) -> Opened:
    """Find the container and, by its first rows, the format."""
    settings = settings_of(source)
    container = open_container(settings.location)
    form = _format_for(settings, _peeked_columns(container), container.label)
    if settings.language is not None and form.nodes is None:
        raise ConfigError(
            f"{container.label}: language picks conversations out of OpenAssistant trees alone; leave it out"
        )
    layout = _Layout(settings, container, form)
    return _RowSource(layout, container.label) if form.nodes is None else _TreeSource(layout, container.label)


def _peeked_columns(container: Container) -> list[str]:
    """All columns of the first rows, in the order met. Raises DataError where there are no rows, or none is read."""
    columns: dict[str, None] = {}
    row, num_read, first_problem = None, 0, None
    for row, raw in enumerate(islice(container.rows(), NUM_PEEKED)):
        try:
            columns.update(dict.fromkeys(_columns_of(raw)))
            num_read += 1
        except DataError as error:
            first_problem = first_problem or placed(error, Place(raw.path, raw.line, row))
    if row is None:
        raise DataError("is empty: it has no rows", container.label)
    if first_problem is not None and not num_read:
        raise first_problem
    return list(columns)


def _format_for(settings: SourceSettings, columns: list[str], label: str) -> Format:
    for name, column in settings.columns.items():
        if column not in columns:
            raise DataError(missing_column(name, settings.columns, columns), label)
    if len(settings.formats) == 1:
        form = next(iter(settings.formats.values()))
        _require_fields(settings.columns, form, label)
        return form
    try:
        return settings.formats[recognise(columns, settings.columns, settings.formats)]
    except DataError as error:
        raise DataError(str(error), label) from error


def _require_fields(columns: Mapping[str, str], form: Format, label: str) -> None:
    fields = (*form.required, *form.optional, *ROW_FIELDS)
    for name in columns:
        if name not in fields:
            raise ConfigError(f"{label}: its format has no field {name!r}{nearest(name, fields)}")
