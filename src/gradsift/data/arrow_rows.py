"""Rows of Arrow tables as Python values: JSON columns parsed, and a row that can't be read by itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gradsift.data.containers import Content
from gradsift.data.jsontext import parsed_json
from gradsift.data.values import first_line, listed
from gradsift.errors import DataError

Reader = Callable[[Any], Any]
"""Makes of a value of a column what the JSON in it stands for."""


def arrow_rows(batch: Any) -> Iterator[Content]:
    """The rows of a table or record batch; in place of one that can't be read, why.

    Columns of `datasets.Json` are text with a mark on it, at any depth; they come as the values that the text holds.
    """
    _require_names(batch.schema.names)
    readers = _json_readers(batch.schema)
    for row in _values(batch):
        yield row if isinstance(row, DataError) or not readers else _with_json(row, readers)


def _require_names(names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise DataError(f"two columns have the same name: {listed(names)}")


def _values(batch: Any) -> Iterator[dict[str, Any] | DataError]:
    """Whole, and row by row where a row of it can't be: text that is no UTF-8, a date that Python lacks."""
    try:
        yield from batch.to_pylist()
    except _unreadable():
        for index in range(batch.num_rows):
            yield _row(batch, index)


def _row(batch: Any, index: int) -> dict[str, Any] | DataError:
    values = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = column[index].as_py()
        except _unreadable() as error:
            return DataError(f"column {name!r} can't be read: {first_line(error)}")
    return values


def _unreadable() -> tuple[type[Exception], ...]:
    """What Arrow raises where Python has no such value: by type of value, and by library that it asks for one."""
    import pyarrow as pa

    return (ValueError, ArithmeticError, LookupError, TypeError, pa.ArrowException)


def _with_json(row: Mapping[str, Any], readers: Mapping[str, Reader]) -> Content:
    values = dict(row)
    for name, reader in readers.items():
        try:
            values[name] = reader(values[name])
        except (json.JSONDecodeError, DataError) as error:
            return DataError(f"column {name!r} is not valid JSON: {first_line(error)}")
    return values


def _json_readers(schema: Any) -> dict[str, Reader]:
    """By column that has JSON in it."""
    marked = _marked_columns(schema.metadata or {})
    readers = {field.name: _parsed if field.name in marked else _json_reader(field.type) for field in schema}
    return {name: reader for name, reader in readers.items() if reader is not None}


def _marked_columns(metadata: Mapping[bytes, bytes]) -> set[str]:
    """The columns that `datasets` says are JSON, whose mark another writer may have dropped."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {name for name, feature in features.items() if feature.get("_type") == "Json"}
    except (KeyError, TypeError, AttributeError, ValueError):
        return set()


def _json_reader(kind: Any) -> Reader | None:
    """None where there is no JSON at any depth."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return _parsed if kind.extension_name == "arrow.json" else _json_reader(kind.storage_type)
    if pa.types.is_struct(kind):
        inner = {field.name: _json_reader(field.type) for field in kind}
        return _of_struct({name: reader for name, reader in inner.items() if reader is not None})
    if pa.types.is_map(kind):
        return _of_pairs(_json_reader(kind.item_type))
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return _of_list(_json_reader(kind.value_type)) if is_list else None


def _parsed(text: Any) -> Any:
    return parsed_json(text) if isinstance(text, str) else text


def _of_list(inner: Reader | None) -> Reader | None:
    return None if inner is None else lambda values: values and [inner(value) for value in values]


def _of_pairs(inner: Reader | None) -> Reader | None:
    return None if inner is None else lambda pairs: pairs and [(key, inner(value)) for key, value in pairs]


def _of_struct(inner: Mapping[str, Reader]) -> Reader | None:
    if not inner:
        return None
    return lambda value: value and {**value, **{name: reader(value[name]) for name, reader in inner.items()}}
