"""Data files: JSON lines, JSON, CSV, TSV and parquet, each also as .gz; their raw rows, one by one."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from glob import glob
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal

from gradsift.data.arrow_rows import arrow_rows
from gradsift.data.containers import Content, RawRow
from gradsift.data.jsontext import parsed_json
from gradsift.data.values import first_line, listed
from gradsift.errors import DataError
from gradsift.machine import file_sha256

BATCH_ROWS = 1000
"""Rows of a parquet file that are decoded at once."""

MAX_CELL = 1 << 30
"""Characters of a cell of a text table."""
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class DataFiles:
    """Data files of one kind, read one after the other."""

    label: str
    paths: list[Path]
    headerless: tuple[str, ...]

    def rows(self) -> Iterator[RawRow]:
        """The rows of all files."""
        for path in self.paths:
            yield from FILE_KINDS[suffix(path)](path, self.headerless)

    def count(self) -> int:
        """How many they are."""
        return sum(1 for _ in self.rows())

    def digests(self) -> list[str]:
        """SHA-256 of each file."""
        return [file_sha256(path) for path in self.paths]


def suffix(path: Path) -> str:
    """The suffix that says what a file is, in small letters, with .gz looked through."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz") if not name.endswith(".parquet.gz") else name).suffix


def data_files(folder: Path) -> list[Path]:
    """The data files of a folder, by name. Raises DataError where there are none, or two kinds of them."""
    return _of_one_kind(list(folder.iterdir()), folder, "the folder has")


def matching_files(pattern: str) -> list[Path]:
    """The data files that a pattern with `*`, `?` or `[…]` fits (`**`: at any depth), by name. Raises DataError where
    there are none, or two kinds of them."""
    found = glob(pattern, recursive=True)  # noqa: PTH207, Path.glob takes no pattern that begins with a slash
    return _of_one_kind([Path(name) for name in found], pattern, "the pattern fits")


def _of_one_kind(paths: Sequence[Path], place: str | Path, has: str) -> list[Path]:
    about = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
    files = [path for path in paths if path.is_file() and not path.name.startswith(".")]
    found = sorted(path for path in files if suffix(path) in FILE_KINDS and path.name not in about)
    kinds = sorted({suffix(path) for path in found})
    if not found:
        raise DataError(f"{has} no data files ({', '.join(FILE_KINDS)})", place)
    if len(kinds) > 1:
        raise DataError(f"{has} files of several kinds ({', '.join(kinds)}); name one kind", place)
    return found


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number, line with its end) of all lines; the byte-order mark left out."""
    with _open_bytes(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"is not a whole gzip file: {first_line(error)}", path) from error


def _open_bytes(path: Path) -> IO[bytes]:
    try:
        if path.name.lower().endswith(".gz"):
            return gzip.open(path, "rb")  # type: ignore[return-value]
        return path.open("rb")
    except OSError as error:
        raise DataError(f"can't be opened: {error.strerror}", path) from error


def _text_lines(path: Path) -> Iterator[str]:
    """Raises DataError at the first line that isn't UTF-8."""
    for number, line in _lines(path):
        try:
            yield decoded(line)
        except DataError as error:
            raise DataError(str(error), path, number) from error


def decoded(line: bytes) -> str:
    """Raises DataError without a place."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(line[error.start], f"at position {error.start + 1}") from error


def _not_utf8(byte: int, where: str) -> DataError:
    return DataError(f"is not valid UTF-8 (byte {byte:#04x} {where})")


def _json_lines(path: Path, headerless: tuple[str, ...]) -> Iterator[RawRow]:
    """The lines that aren't blank, without their ends."""
    name = str(path)
    for number, line in _lines(path):
        if line and not line.isspace():
            yield RawRow(name, number, line.removesuffix(b"\n").removesuffix(b"\r"))


def _json_rows(path: Path, headerless: tuple[str, ...]) -> Iterator[RawRow]:
    """The rows of a JSON document: a list, or an object with one list."""
    value = json_document(path)
    if isinstance(value, dict):
        lists = [key for key, item in value.items() if isinstance(item, list)]
        if len(lists) != 1:
            raise DataError(f"is an object with {len(lists)} lists ({listed(lists)}); one was expected", path)
        value = value[lists[0]]
    if not isinstance(value, list):
        raise DataError("is neither a list of rows nor an object with one", path)
    return (RawRow(str(path), None, row) for row in value)


def json_document(path: Path) -> Any:
    """The value in a JSON file; an empty list for an empty file. Raises DataError naming the line."""
    text = "".join(_text_lines(path))
    if not text.strip():
        return []
    try:
        return parsed_json(text)
    except DataError as error:
        raise DataError(str(error), path) from error
    except json.JSONDecodeError as error:
        hint = "; a file with a JSON object a line is named .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"is not valid JSON: {error.msg}{hint}", path, error.lineno) from error


def _delimited(delimiter: str, path: Path, headerless: tuple[str, ...]) -> Iterator[RawRow]:
    """The rows of a table in text; files without a header are published with tabs, and without quotes.

    Bytes that aren't UTF-8 come as halves of surrogate pairs, which UTF-8 has none of: so only their row is lost.
    """
    lines = (line.decode(errors="surrogateescape") for _, line in _lines(path))
    first = next(lines, "")
    bare = delimiter == "\t" and headerless and set(first.rstrip("\r\n").split("\t")) != set(headerless)
    quoting: Literal[0, 3] = csv.QUOTE_NONE if bare else csv.QUOTE_MINIMAL
    csv.field_size_limit(MAX_CELL)  # of the module, not of a reader; texts outgrow its 128 KiB
    reader = csv.reader(chain([first], lines), delimiter=delimiter, quoting=quoting, strict=True)
    header = list(headerless) if bare else None
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = _header(cells, path, reader.line_num)
                continue
            yield RawRow(str(path), reader.line_num, _cells_by_column(header, cells))
    except csv.Error as error:
        raise DataError(f"is no table in this form: {error}", path, reader.line_num) from error


def _header(cells: list[str], path: Path, line: int) -> list[str]:
    if len(set(cells)) != len(cells):
        raise DataError(f"two columns have the same name: {listed(cells)}", path, line)
    problem = _byte_problem(cells, cells)
    if problem is not None:
        raise DataError(str(problem), path, line)
    return cells


def _cells_by_column(header: list[str], cells: list[str]) -> Content:
    problem = _byte_problem(cells, header)
    if problem is not None:
        return problem
    if len(cells) != len(header):
        return DataError(f"has {len(cells)} cells for {len(header)} columns ({listed(header)})")
    return dict(zip(header, cells, strict=True))


def _byte_problem(cells: Sequence[str], header: Sequence[str]) -> DataError | None:
    """What is wrong with the first cell that holds bytes which aren't UTF-8."""
    for index, cell in enumerate(cells):
        found = None if cell.isascii() else _ESCAPED_BYTE.search(cell)
        if found:
            column = header[index].encode(errors="replace").decode() if index < len(header) else index
            return _not_utf8(ord(found[0]) - 0xDC00, f"in column {column!r}")
    return None


def _parquet_rows(path: Path, headerless: tuple[str, ...]) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                yield from (RawRow(str(path), None, row) for row in arrow_rows(batch))
    except DataError as error:
        raise DataError(str(error), path) from error
    except (pa.ArrowException, OSError) as error:
        problem = "can't be read" if getattr(error, "errno", None) else "is not a parquet file"
        raise DataError(f"{problem}: {first_line(error)}", path) from error


FILE_KINDS: dict[str, Callable[[Path, tuple[str, ...]], Iterator[RawRow]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_rows,
    ".csv": partial(_delimited, ","),
    ".tsv": partial(_delimited, "\t"),
    ".parquet": _parquet_rows,
}
