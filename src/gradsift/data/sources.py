"""Sources: where the rows of a pool or target are, and the `Example`s that they give, in file order.

A source is a file, a folder, a saved or a published `datasets` table, or an entry of LLaMA-Factory's. Rows
are counted from 0, blank lines left out, before any limit or sample: that position is an example's `row`,
and joins it to the line that it came from.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

from gradsift.data.containers import Container, RawRow
from gradsift.data.example import Example
from gradsift.data.files import decoded
from gradsift.data.formats import ROW_FIELDS, Format, fields_of, recognise
from gradsift.data.message_trees import Conversation, Node, conversations
from gradsift.data.opening import open_container
from gradsift.data.source_settings import SourceConfig, SourceSettings, settings_of
from gradsift.data.turns import tools_of
from gradsift.data.values import missing_column
from gradsift.errors import ConfigError, DataError, nearest

Picked = TypeVar("Picked")

NUM_PEEKED = 1000
"""Rows looked at to find out which columns there are."""


def read_examples(source: SourceConfig, seed: int) -> Iterator[Example]:
    """The examples of a source, in file order; a sample is drawn with `seed`, or the source's own.

    Raises DataError naming the file and the line or row: nothing there, a broken line, a missing column, a
    value of the wrong type, or an id that stands twice. Raises ConfigError where keys of the source don't go
    together.
    """
    opened = _open(source)
    seen: dict[str, _Place] = {}
    seed = seed if source.sample_seed is None else source.sample_seed
    for row, item in _drawn(opened, opened.layout.settings, seed):
        example = opened.example(row, item)
        place = opened.place(row, item)
        if example.id in seen:
            raise DataError(f"the id {example.id!r} stands twice: {seen[example.id]} and {place}")
        seen[example.id] = place
        yield example
    if not seen:
        raise DataError("gives no conversation: none is left of its message trees", opened.label)


def selected_lines(source: SourceConfig, rows: Collection[int]) -> dict[int, bytes]:
    """The JSON line of each of those rows, in the user's own schema and without its line end.

    A line of a JSONL file comes byte for byte, and the lines between aren't parsed. A row of another
    container is put as JSON, its columns in their order; what JSON lacks (dates) as text. A conversation out
    of a message tree has a line of its own: id, source, messages. Positions don't depend on samples or limits.
    Raises DataError where the source has no such row.
    """
    return _picked(source, rows, lambda opened, row, item: opened.line(row, item))


def selected_examples(source: SourceConfig, rows: Collection[int]) -> dict[int, Example]:
    """The example at each of those rows; those between aren't parsed. Raises DataError where there is no such row."""
    return _picked(source, rows, lambda opened, row, item: opened.example(row, item))


def _picked(
    source: SourceConfig, rows: Collection[int], pick: Callable[[_Opened, int, Any], Picked]
) -> dict[int, Picked]:
    """What `pick` makes of each of those rows."""
    opened = _open(source)
    wanted, picked = set(rows), {}
    for row, item in enumerate(opened.items()) if wanted else ():
        if row in wanted:
            picked[row] = pick(opened, row, item)
            if len(picked) == len(wanted):
                break
    absent = sorted(wanted - set(picked))
    if absent:
        raise DataError(f"has no row {absent[0]}", opened.label)
    return picked


def source_fingerprint(source: SourceConfig) -> str:
    """SHA-256 of the content, in hex: of one file, of the digests of several, of a hub dataset's fingerprint.

    Names of folders and times don't count; a LLaMA-Factory entry does, being a part of how rows are read.
    """
    settings = settings_of(source)
    digests = open_container(settings.location).digests()
    if settings.entry:
        digests.append(hashlib.sha256(json.dumps(settings.entry, sort_keys=True).encode()).hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


# Opened sources: items and the examples in them


class _Place(NamedTuple):
    """Where a row stands, for errors."""

    path: str
    line: int | None
    row: int

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}" if self.line is not None else f"{self.path}, row {self.row}"


class _Opened(Protocol):
    """A source whose format is known."""

    @property
    def label(self) -> str: ...
    @property
    def layout(self) -> _Layout: ...

    def items(self) -> Iterator[Any]:
        """What an example is made of, one by one: its position is the example's row."""

    def count(self) -> int: ...
    def place(self, row: int, item: Any) -> _Place: ...
    def example(self, row: int, item: Any) -> Example: ...
    def line(self, row: int, item: Any) -> bytes: ...


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
    value = raw.content if not isinstance(raw.content, bytes) else _parsed(raw.content)
    if not isinstance(value, dict):
        raise DataError(f"is {'null' if value is None else f'a {type(value).__name__}'}, not an object with columns")
    return value


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(decoded(line))
    except json.JSONDecodeError as error:
        raise DataError(f"is not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise DataError("is not read: its JSON is nested too deeply") from error


def _placed(error: DataError, place: _Place) -> DataError:
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

    def place(self, row: int, item: RawRow) -> _Place:
        return _Place(item.path, item.line, row)

    def example(self, row: int, item: RawRow) -> Example:
        try:
            return self._example(row, _columns_of(item))
        except DataError as error:
            raise _placed(error, self.place(row, item)) from error

    def _example(self, row: int, columns: Mapping[str, Any]) -> Example:
        to_messages = self.layout.form.messages
        assert to_messages is not None
        names = self.layout.settings.columns
        fields = self.layout.fields(columns)
        return Example(
            id=_row_id(row, columns, names.get("id", "id")),
            messages=to_messages(fields),
            source=self.layout.settings.name,
            row=row,
            subtask=_subtask(columns, names["subtask"]) if "subtask" in names else None,
            tools=tools_of(fields),
        )

    def line(self, row: int, item: RawRow) -> bytes:
        if isinstance(item.content, bytes):
            return item.content
        return json.dumps(item.content, ensure_ascii=False, default=str).encode()


def _row_id(row: int, columns: Mapping[str, Any], column: str) -> str:
    """The user's id, else one made of the row's position and content."""
    given = columns.get(column)
    if given is not None and given != "":
        return str(given)
    content = json.dumps(columns, sort_keys=True, ensure_ascii=False, default=str)
    return f"{row:07d}-{hashlib.sha256(content.encode(errors='surrogatepass')).hexdigest()[:12]}"


def _subtask(columns: Mapping[str, Any], column: str) -> str:
    value = columns.get(column)
    if value is None:
        raise DataError(f"has no subtask: no value in column {column!r}")
    return str(value)


@dataclass(frozen=True, slots=True)
class _TreeSource:
    """A path through a tree of messages is an example; its position is that among all such paths."""

    layout: _Layout
    label: str

    def items(self) -> Iterator[Conversation]:
        language = self.layout.settings.language
        if self.layout.form.tree_per_row:
            for place, nodes in self._nodes_by_row():
                yield from self._conversations(nodes, language, str(place))
        else:
            table = [node for _, nodes in self._nodes_by_row() for node in nodes]
            yield from self._conversations(table, language, self.label)

    def count(self) -> int:
        return sum(1 for _ in self.items())

    def _nodes_by_row(self) -> Iterator[tuple[_Place, list[Node]]]:
        to_nodes = self.layout.form.nodes
        assert to_nodes is not None
        for row, raw in enumerate(self.layout.container.rows()):
            place = _Place(raw.path, raw.line, row)
            try:
                yield place, to_nodes(self.layout.fields(_columns_of(raw)))
            except DataError as error:
                raise _placed(error, place) from error

    def _conversations(self, nodes: list[Node], language: str | None, where: str) -> Iterator[Conversation]:
        try:
            yield from conversations(nodes, language)
        except DataError as error:
            raise DataError(str(error), where) from error

    def place(self, row: int, item: Conversation) -> _Place:
        return _Place(self.label, None, row)

    def example(self, row: int, item: Conversation) -> Example:
        return Example(item.id, item.messages, self.layout.settings.name, row)

    def line(self, row: int, item: Conversation) -> bytes:
        value = {"id": item.id, "source": self.layout.settings.name, "messages": item.messages}
        return json.dumps(value, ensure_ascii=False).encode()


def _open(source: SourceConfig) -> _Opened:
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
    """All columns of the first rows, in the order met. Raises DataError where there are no rows."""
    columns: dict[str, None] = {}
    row = None
    for row, raw in enumerate(islice(container.rows(), NUM_PEEKED)):
        try:
            columns.update(dict.fromkeys(_columns_of(raw)))
        except DataError as error:
            raise _placed(error, _Place(raw.path, raw.line, row)) from error
    if row is None:
        raise DataError("is empty: it has no rows", container.label)
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


def _drawn(opened: _Opened, settings: SourceSettings, seed: int) -> Iterator[tuple[int, Any]]:
    """(row, item) of the rows that the limit or the sample leaves, in order."""
    items = enumerate(opened.items())
    if settings.limit is not None:
        yield from islice(items, settings.limit)
    elif settings.sample is not None:
        num_rows = opened.count()
        drawn = set(random.Random(seed).sample(range(num_rows), min(settings.sample, num_rows)))
        yield from ((row, item) for row, item in items if row in drawn)
    else:
        yield from items
