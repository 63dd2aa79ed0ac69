"""Sources: where the rows of a pool or target are, and the `Example`s that they give, in file order.

A source is a file, a folder, a saved or a published `datasets` table, or an entry of LLaMA-Factory's. Rows
are counted from 0, blank lines left out, before any limit or sample: that position is an example's `row`,
and joins it to the line that it came from.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import json
import random
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gradsift.artifact import file_sha256
from gradsift.data import Example
from gradsift.errors import ConfigError, DataError, nearest
from gradsift.formats import (
    FORMATS,
    ROLES,
    ROW_FIELDS,
    SHAREGPT_TURNS,
    Conversation,
    Format,
    Node,
    Turns,
    conversations,
    fields_of,
    listed,
    missing_column,
    recognise,
    sharegpt_with,
)
from gradsift.presets import PRESETS

NUM_PEEKED = 1000
"""Rows looked at to find out which columns there are."""

MAX_CELL = 1 << 30
"""Characters of a cell of a text table."""

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class LlamaFactoryEntry(BaseModel):
    """A dataset as LLaMA-Factory knows it: an entry of the `dataset_info.json` in its data folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset_dir: str
    dataset: str


class SourceConfig(BaseModel):
    """Where rows come from and how they are read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    """None: the name of the file, folder, dataset or preset."""
    path: str | None = None
    """File, folder, or name of a dataset on the hub."""
    preset: Literal["flan_v2", "cot", "dolly", "oasst1"] | None = None
    """One of the paper's pools; with `path`, a copy of it in its published layout."""
    llamafactory: LlamaFactoryEntry | None = None
    format: str | None = None
    """None: recognised by the columns."""
    columns: dict[str, str] = {}
    """Field of the format, `id` or `subtask`, and the column that it is in."""
    split: str | None = None
    """None: train."""
    subset: str | None = None
    """Configuration of a dataset on the hub."""
    limit: int | None = Field(default=None, ge=1)
    """The first rows alone."""
    sample: int | None = Field(default=None, ge=1)
    """Rows drawn by the run's seed, kept in file order; all of them where there are fewer."""
    language: str | None = None
    """Conversations in this language alone; OpenAssistant trees."""

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str | None) -> str | None:
        if value is not None and value not in FORMATS:
            raise ValueError(f"unknown format {value!r}{nearest(value, FORMATS)}")
        return value

    @field_validator("columns")
    @classmethod
    def _known_fields(cls, value: dict[str, str]) -> dict[str, str]:
        known = {
            *ROW_FIELDS,
            *(name for form in FORMATS.values() for name in (*form.required, *form.optional)),
        }
        for name in value:
            if name not in known:
                raise ValueError(f"no format has a field {name!r}{nearest(name, known)}")
        return value

    @model_validator(mode="after")
    def _one_place(self) -> SourceConfig:
        if self.llamafactory is not None:
            self._refuse("llamafactory", "path", "preset", "format", "split", "subset")
        elif not self.path and self.preset is None:
            raise ValueError("give one of path (a file, a folder or a hub dataset), preset, or llamafactory")
        if self.limit is not None:
            self._refuse("limit", "sample")
        return self

    @model_validator(mode="after")
    def _has_a_name(self) -> SourceConfig:
        if not self.name:
            # Frozen for everyone else; nobody has seen this one yet.
            object.__setattr__(self, "name", _default_name(self))
        return self

    def _refuse(self, key: str, *others: str) -> None:
        given = [other for other in others if getattr(self, other) is not None]
        if given:
            raise ValueError(f"{key} and {' and '.join(given)} don't go together: leave one of them out")


def _default_name(source: SourceConfig) -> str:
    if source.llamafactory is not None:
        name = source.llamafactory.dataset
    elif source.preset is not None:
        name = source.preset
    else:
        name = Path(source.path or "").name
        kind = _suffix(Path(name))
        name = name.removesuffix(".gz").removesuffix(kind) if kind in FILE_KINDS else name
    return re.sub(r"[^\w.+-]+", "_", name).lstrip("._+-") or "source"


def read_examples(source: SourceConfig, seed: int) -> Iterator[Example]:
    """The examples of a source, in file order; a sample is drawn with `seed`.

    Raises DataError naming the file and the line or row: nothing there, a broken line, a missing column, a
    value of the wrong type, or an id that stands twice. Raises ConfigError where keys of the source don't go
    together.
    """
    opened = _open(source)
    seen: dict[str, _Place] = {}
    for row, item in _drawn(opened, opened.layout.settings, seed):
        example = opened.example(row, item)
        place = opened.place(row, item)
        if example.id in seen:
            raise DataError(f"the id {example.id!r} stands twice: {seen[example.id]} and {place}")
        seen[example.id] = place
        yield example
    if not seen:
        raise DataError("gives no conversation: none is left of its message trees", opened.label)


def selected_lines(source: SourceConfig, seed: int, rows: Collection[int]) -> dict[int, bytes]:
    """The JSON line of each of those rows, in the user's own schema and without its line end.

    A line of a JSONL file comes byte for byte, and the lines between aren't parsed. A row of another
    container is put as JSON, its columns in their order; what JSON lacks (dates) as text. A conversation out
    of a message tree has a line of its own: id, source, messages. `seed` draws samples, and positions don't
    depend on them. Raises DataError where the source has no such row.
    """
    opened = _open(source)
    wanted, lines = set(rows), {}
    for row, item in enumerate(opened.items()) if wanted else ():
        if row in wanted:
            lines[row] = opened.line(row, item)
            if len(lines) == len(wanted):
                break
    absent = sorted(wanted - set(lines))
    if absent:
        raise DataError(f"has no row {absent[0]}", opened.label)
    return lines


def source_fingerprint(source: SourceConfig) -> str:
    """SHA-256 of the content, in hex: of one file, of the digests of several, of a hub dataset's fingerprint.

    Names of folders and times don't count; a LLaMA-Factory entry does, being a part of how rows are read.
    """
    settings = _settings(source)
    digests = _container(settings).digests()
    if settings.entry:
        digests.append(hashlib.sha256(json.dumps(settings.entry, sort_keys=True).encode()).hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


# Settings: what a config comes down to


@dataclass(frozen=True, slots=True)
class _Settings:
    """A source once its preset or its LLaMA-Factory entry has been looked up."""

    name: str
    place: str
    formats: Mapping[str, Format]
    """The formats that it may have."""
    columns: Mapping[str, str]
    split: str | None
    subset: str | None
    limit: int | None
    sample: int | None
    language: str | None
    on_hub: bool | None = None
    """None: on the hub where nothing here has that name."""
    hub_options: Mapping[str, Any] = field(default_factory=dict)
    entry: Mapping[str, Any] = field(default_factory=dict)
    """LLaMA-Factory's."""

    @property
    def headerless(self) -> tuple[str, ...]:
        """Columns of a tab-separated file without a header, where the config says which format to expect."""
        if len(self.formats) == len(FORMATS):
            return ()
        return next((form.headerless for form in self.formats.values() if form.headerless), ())


def _settings(source: SourceConfig) -> _Settings:
    if source.llamafactory is not None:
        return _llamafactory_settings(source, source.llamafactory)
    settings = _Settings(
        name=source.name or "",
        place=source.path or "",
        formats=FORMATS if source.format is None else {source.format: FORMATS[source.format]},
        columns=source.columns,
        split=source.split,
        subset=source.subset,
        limit=source.limit,
        sample=source.sample,
        language=source.language,
    )
    return settings if source.preset is None else _with_preset(settings, source)


def _with_preset(settings: _Settings, source: SourceConfig) -> _Settings:
    preset = PRESETS[str(source.preset)]
    whole = source.limit is None and source.sample is None
    settings = replace(
        settings,
        formats=settings.formats if source.format else {name: FORMATS[name] for name in preset.formats},
        sample=preset.num_examples if whole else source.sample,
        language=source.language or preset.language,
    )
    if source.path:
        return settings
    return replace(
        settings,
        place=preset.hub,
        split=source.split or preset.split,
        subset=source.subset or preset.subset,
        on_hub=True,
        hub_options={"data_files": list(preset.files)} if preset.files else {},
    )


# LLaMA-Factory's dataset_info.json

ALPACA_FIELDS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "system": "system",
}
SHAREGPT_FIELDS = {"messages": "conversations", "system": "system"}
ENTRY_COLUMNS_REFUSED = ("tools", "images", "videos", "audios", "chosen", "rejected", "kto_tag")
"""Columns without which a row isn't what LLaMA-Factory would train on."""


def _llamafactory_settings(source: SourceConfig, key: LlamaFactoryEntry) -> _Settings:
    """An entry of dataset_info.json. Raises DataError where there is none, or none that can be read."""
    info = Path(key.dataset_dir).expanduser() / "dataset_info.json"
    entry = _entry(info, key.dataset)
    form, columns = _entry_format(info, key.dataset, entry)
    on_hub = "hf_hub_url" in entry
    whole = source.limit is None and source.sample is None
    options = {"data_dir": entry.get("folder"), "revision": entry.get("revision")} if on_hub else {}
    return _Settings(
        name=source.name or "",
        place=str(entry["hf_hub_url"] if on_hub else info.parent / entry["file_name"]),
        formats={str(entry.get("formatting", "alpaca")): form},
        columns={**columns, **source.columns},
        split=entry.get("split"),
        subset=entry.get("subset") if on_hub else None,
        limit=source.limit,
        sample=entry.get("num_samples") if whole else source.sample,
        language=source.language,
        on_hub=on_hub,
        hub_options={name: value for name, value in options.items() if value is not None},
        entry=entry,
    )


def _entry(info: Path, name: str) -> Mapping[str, Any]:
    if not info.is_file():
        raise DataError("there is no such file; llamafactory.dataset_dir is the folder that holds it", info)
    entries = _json_document(info)
    entry = entries.get(name) if isinstance(entries, dict) else None
    if not isinstance(entry, dict):
        raise DataError(f"has no dataset {name!r}{nearest(name, entries or [])}", info)
    refusal = _refusal(entry)
    if refusal:
        raise DataError(f"the dataset {name!r} can't be read: {refusal}", info)
    return entry


def _refusal(entry: Mapping[str, Any]) -> str | None:
    if entry.get("ranking"):
        return "it holds preferences (ranking: true), not answers to learn"
    if not ("hf_hub_url" in entry or "file_name" in entry):
        there = [key for key in entry if key.endswith(("_url", "_name"))]
        return f"it is neither a local file nor on the Hugging Face hub, but has {listed(there)}"
    mapped = [name for name in ENTRY_COLUMNS_REFUSED if (entry.get("columns") or {}).get(name)]
    if mapped:
        return f"its rows need {listed(mapped)}, and only text is read"
    return None


def _entry_format(info: Path, name: str, entry: Mapping[str, Any]) -> tuple[Format, dict[str, str]]:
    """The format of an entry and the column of each field.

    As in LLaMA-Factory, optional columns are read where the entry names them; without `columns` an alpaca
    entry reads instruction, input and output.
    """
    formatting = entry.get("formatting", "alpaca")
    if formatting == "alpaca":
        form, names = FORMATS["alpaca"], ALPACA_FIELDS
    elif formatting in ("sharegpt", "openai"):
        form, names = sharegpt_with(_entry_turns(entry.get("tags") or {})), SHAREGPT_FIELDS
    else:
        raise DataError(f"the dataset {name!r} has an unknown formatting {formatting!r}", info)
    given = entry.get("columns")
    columns = {names[key]: column for key, column in (given or {}).items() if key in names and column}
    read = [*columns, *([] if given else ["input"])]
    return replace(form, optional=tuple(name for name in form.optional if name in read)), columns


def _entry_turns(tags: Mapping[str, str]) -> Turns:
    roles = {"system": "system", "user": "user", "assistant": "assistant", "observation": "tool"}
    named = {tags[f"{role}_tag"]: known for role, known in roles.items() if f"{role}_tag" in tags}
    return Turns(
        (tags["role_tag"],) if "role_tag" in tags else SHAREGPT_TURNS.role_keys,
        (tags["content_tag"],) if "content_tag" in tags else SHAREGPT_TURNS.content_keys,
        {**ROLES, **named},
    )


# Containers: what rows are kept in


class _Raw(NamedTuple):
    """A row as its container holds it."""

    path: str
    line: int | None
    content: bytes | Mapping[str, Any]
    """Bytes: a JSON line, not parsed yet."""


class _Container(Protocol):
    @property
    def label(self) -> str:
        """What errors call it."""

    def rows(self) -> Iterator[_Raw]: ...
    def count(self) -> int: ...
    def digests(self) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class _Files:
    """Data files of one kind, read one after the other."""

    label: str
    paths: list[Path]
    headerless: tuple[str, ...]

    def rows(self) -> Iterator[_Raw]:
        for path in self.paths:
            yield from FILE_KINDS[_suffix(path)](path, self.headerless)

    def count(self) -> int:
        return sum(1 for _ in self.rows())

    def digests(self) -> list[str]:
        return [file_sha256(path) for path in self.paths]


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of the `datasets` library, saved or published."""

    label: str
    load: Callable[[], Any]
    folder: Path | None = None

    def rows(self) -> Iterator[_Raw]:
        return (_Raw(self.label, None, row) for row in self.load())

    def count(self) -> int:
        return len(self.load())

    def digests(self) -> list[str]:
        if self.folder is None:
            return [hashlib.sha256(str(self.load()._fingerprint).encode()).hexdigest()]
        return [file_sha256(path) for path in sorted(self.folder.rglob("*.arrow"))]


def _container(settings: _Settings) -> _Container:
    """Raises DataError where nothing has that name here, nor could have on the hub."""
    path = Path(settings.place).expanduser()
    local = path.exists() or _looks_like_a_file(settings.place) if settings.on_hub is None else not settings.on_hub
    if not local:
        return _Table(settings.place, cache(partial(_load_from_hub, settings)))
    if not path.exists():
        raise DataError("there is no such file or folder", settings.place)
    if _is_saved_table(path):
        folder = _split_folder(path, settings.split)
        return _Table(str(path), cache(partial(_load_saved, folder)), folder)
    _require_no_splits(settings)
    paths = _data_files(path) if path.is_dir() else [path]
    if _suffix(paths[0]) not in FILE_KINDS:
        raise DataError(f"is no kind of file that can be read; known: {', '.join(FILE_KINDS)} (and .gz)", path)
    return _Files(str(path), paths, settings.headerless)


def _looks_like_a_file(place: str) -> bool:
    path = Path(place)
    bare = "/" not in place
    return (
        place.startswith((".", "/", "~"))
        or _suffix(path) in FILE_KINDS
        or (bare and path.suffix != "")
        or HUB_NAME.fullmatch(place) is None
    )


def _suffix(path: Path) -> str:
    """The suffix that says what a file is, in small letters, with .gz looked through."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz") if not name.endswith(".parquet.gz") else name).suffix


def _require_no_splits(settings: _Settings) -> None:
    if settings.split not in (None, "train"):
        raise ConfigError(f"{settings.place}: files have no splits; leave out split: {settings.split}")
    if settings.subset is not None:
        raise ConfigError(f"{settings.place}: files have no subsets; leave out subset: {settings.subset}")


def _data_files(folder: Path) -> list[Path]:
    """The data files of a folder, by name. Raises DataError where there are none, or two kinds of them."""
    about = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    paths = sorted(path for path in files if _suffix(path) in FILE_KINDS and path.name not in about)
    kinds = sorted({_suffix(path) for path in paths})
    if not paths:
        raise DataError(f"the folder has no data files ({', '.join(FILE_KINDS)})", folder)
    if len(kinds) > 1:
        raise DataError(f"the folder has files of several kinds ({', '.join(kinds)}); name one file", folder)
    return paths


# Tables of the `datasets` library


def _is_saved_table(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def _load_saved(folder: Path) -> Any:
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"can't be read as a saved dataset: {_first_line(error)}", folder) from error


def _split_folder(path: Path, split: str | None) -> Path:
    """The folder of one split. Raises DataError listing the splits where it has no such one."""
    wanted, described = split or "train", path / "dataset_dict.json"
    splits = list(_json_document(described)["splits"]) if described.is_file() else []
    if not splits and wanted == "train":
        return path
    if wanted not in splits:
        raise DataError(f"has no split {wanted!r}; the splits there are: {listed(splits)}", path)
    return path / wanted


def _load_from_hub(settings: _Settings) -> Any:
    """Raises DataError whatever goes wrong: no network, no such dataset, split or subset."""
    import datasets

    try:
        return datasets.load_dataset(
            settings.place, settings.subset, split=settings.split or "train", **settings.hub_options
        )
    except Exception as error:  # the errors of four libraries, with no root but this one
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise DataError(
            f"is no file or folder here, and can't be loaded from the hub ({reason})", settings.place
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# Files


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number, line with its end) of all lines; the byte-order mark left out."""
    with _open_bytes(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"is not a whole gzip file: {_first_line(error)}", path) from error


def _open_bytes(path: Path) -> IO[bytes]:
    try:
        if path.name.lower().endswith(".gz"):
            return gzip.open(path, "rb")  # type: ignore[return-value]
        return path.open("rb")
    except OSError as error:
        raise DataError(f"can't be opened: {error.strerror}", path) from error


def _text_lines(path: Path) -> Iterator[str]:
    for number, line in _lines(path):
        try:
            yield _decoded(line)
        except DataError as error:
            raise DataError(str(error), path, number) from error


def _decoded(line: bytes) -> str:
    """Raises DataError without a place."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"byte {line[error.start]:#04x} at position {error.start + 1}"
        raise DataError(f"is not valid UTF-8 ({reason})") from error


def _json_lines(path: Path, headerless: tuple[str, ...]) -> Iterator[_Raw]:
    """The lines that aren't blank, without their ends."""
    name = str(path)
    for number, line in _lines(path):
        if line and not line.isspace():
            yield _Raw(name, number, line.removesuffix(b"\n").removesuffix(b"\r"))


def _json_rows(path: Path, headerless: tuple[str, ...]) -> Iterator[_Raw]:
    """The rows of a JSON document: a list, or an object with one list."""
    value = _json_document(path)
    if isinstance(value, dict):
        lists = [key for key, item in value.items() if isinstance(item, list)]
        if len(lists) != 1:
            raise DataError(f"is an object with {len(lists)} lists ({listed(lists)}); one was expected", path)
        value = value[lists[0]]
    if not isinstance(value, list):
        raise DataError("is neither a list of rows nor an object with one", path)
    return (_Raw(str(path), None, row) for row in value)


def _json_document(path: Path) -> Any:
    text = "".join(_text_lines(path))
    if not text.strip():
        return []
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; a file with a JSON object a line is named .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"is not valid JSON: {error.msg}{hint}", path, error.lineno) from error


def _delimited(delimiter: str, path: Path, headerless: tuple[str, ...]) -> Iterator[_Raw]:
    """The rows of a table in text; files without a header are published with tabs, and without quotes."""
    lines = _text_lines(path)
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
            yield _Raw(str(path), reader.line_num, _cells_by_column(header, cells, path, reader.line_num))
    except csv.Error as error:
        raise DataError(f"is no table in this form: {error}", path, reader.line_num) from error


def _header(cells: list[str], path: Path, line: int) -> list[str]:
    if len(set(cells)) != len(cells):
        raise DataError(f"two columns have the same name: {listed(cells)}", path, line)
    return cells


def _cells_by_column(header: list[str], cells: list[str], path: Path, line: int) -> dict[str, str]:
    if len(cells) != len(header):
        raise DataError(f"has {len(cells)} cells for {len(header)} columns ({listed(header)})", path, line)
    return dict(zip(header, cells, strict=True))


def _parquet_rows(path: Path, headerless: tuple[str, ...]) -> Iterator[_Raw]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=NUM_PEEKED):
                yield from (_Raw(str(path), None, row) for row in batch.to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"is not a parquet file: {_first_line(error)}", path) from error


FILE_KINDS: dict[str, Callable[[Path, tuple[str, ...]], Iterator[_Raw]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_rows,
    ".csv": partial(_delimited, ","),
    ".tsv": partial(_delimited, "\t"),
    ".parquet": _parquet_rows,
}


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

    settings: _Settings
    container: _Container
    form: Format
    """Format of the rows."""

    def fields(self, columns: Mapping[str, Any]) -> Mapping[str, Any]:
        return fields_of(columns, self.form, self.settings.columns)


def _columns_of(raw: _Raw) -> Mapping[str, Any]:
    """A row as an object. Raises DataError without a place."""
    value = raw.content if not isinstance(raw.content, bytes) else _parsed(raw.content)
    if not isinstance(value, dict):
        raise DataError(f"is {'null' if value is None else f'a {type(value).__name__}'}, not an object with columns")
    return value


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(_decoded(line))
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

    def items(self) -> Iterator[_Raw]:
        return self.layout.container.rows()

    def count(self) -> int:
        return self.layout.container.count()

    def place(self, row: int, item: _Raw) -> _Place:
        return _Place(item.path, item.line, row)

    def example(self, row: int, item: _Raw) -> Example:
        try:
            return self._example(row, _columns_of(item))
        except DataError as error:
            raise _placed(error, self.place(row, item)) from error

    def _example(self, row: int, columns: Mapping[str, Any]) -> Example:
        to_messages = self.layout.form.messages
        assert to_messages is not None
        names = self.layout.settings.columns
        return Example(
            id=_row_id(row, columns, names.get("id", "id")),
            messages=to_messages(self.layout.fields(columns)),
            source=self.layout.settings.name,
            row=row,
            subtask=_subtask(columns, names["subtask"]) if "subtask" in names else None,
        )

    def line(self, row: int, item: _Raw) -> bytes:
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
    settings = _settings(source)
    container = _container(settings)
    form = _format_for(settings, _peeked_columns(container), container.label)
    if settings.language is not None and form.nodes is None:
        raise ConfigError(
            f"{container.label}: language picks conversations out of OpenAssistant trees alone; leave it out"
        )
    layout = _Layout(settings, container, form)
    return _RowSource(layout, container.label) if form.nodes is None else _TreeSource(layout, container.label)


def _peeked_columns(container: _Container) -> list[str]:
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


def _format_for(settings: _Settings, columns: list[str], label: str) -> Format:
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


def _drawn(opened: _Opened, settings: _Settings, seed: int) -> Iterator[tuple[int, Any]]:
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
