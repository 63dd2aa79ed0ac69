"""Sources: the user's files and datasets, read as examples, and written back row by row as they were.

Containers: jsonl, json, csv, tsv, parquet (text ones also .gz), a folder of such files, a folder saved by `datasets`,
a hub name, an entry of LLaMA-Factory's dataset_info.json, and the presets.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gradsift.artifact import file_sha256, fingerprint
from gradsift.data import Example, Message
from gradsift.errors import DataError, nearest
from gradsift.formats import (
    FORMATS,
    TREE_FORMATS,
    check_columns,
    message_trees,
    oasst_conversations,
    recognise,
    row_fields,
)
from gradsift.presets import PRESETS

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
LINE_SUFFIXES = (".jsonl", ".ndjson")
BOM = b"\xef\xbb\xbf"
COT_COLUMNS = ("question", "answer", "rationale")


class LlamaFactoryEntry(BaseModel):
    """An entry of a LLaMA-Factory dataset_info.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset_dir: str
    dataset: str


class SourceConfig(BaseModel):
    """One source of the pool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    """Part of a row's key; without one, the file's, dataset's or preset's."""
    path: str | None = None
    preset: Literal["flan_v2", "cot", "dolly", "oasst1"] | None = None
    llamafactory: LlamaFactoryEntry | None = None
    format: str | None = None
    columns: dict[str, str] = {}
    """The user's column for a field of the format, or for `id`."""
    split: str | None = None
    subset: str | None = None
    """Configuration name of a hub dataset."""
    limit: int | None = Field(None, ge=1)
    """The first rows only."""
    sample: int | None = Field(None, ge=1)
    """A random part, drawn with the run's seed and kept in order; a preset draws the paper's number."""
    language: str | None = None
    """Keep this language only (Open Assistant)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_name(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("name"):
            return values
        entry = values.get("llamafactory")
        origin = values.get("preset") or values.get("path")
        if isinstance(entry, dict):
            origin = entry.get("dataset")
        name = Path(str(origin or "")).name
        for suffix in (".gz", *DATA_SUFFIXES):
            name = name.removesuffix(suffix)
        return {**values, "name": name}

    @model_validator(mode="after")
    def _one_origin(self) -> SourceConfig:
        if self.llamafactory is not None and (self.path or self.preset):
            raise ValueError("give llamafactory, or path or preset, not both")
        if not (self.llamafactory or self.path or self.preset):
            raise ValueError("give a path, a preset or llamafactory")
        known = [*FORMATS, *TREE_FORMATS]
        if self.format is not None and self.format not in known:
            raise ValueError(f"unknown format {self.format!r}{nearest(self.format, known)}")
        return self


@dataclass(frozen=True)
class Origin:
    """Where a source's rows come from, and how they are laid out, once preset or LLaMA-Factory entry are looked up."""

    path: str
    is_hub: bool
    formats: tuple[str, ...]
    """Candidates; none: to be recognised."""
    columns: Mapping[str, str]
    split: str | None
    subset: str | None
    sample: int | None
    tags: Mapping[str, str] | None = None
    """LLaMA-Factory's names for the keys and roles of a ShareGPT turn."""


@dataclass(frozen=True)
class RawRow:
    """A row as it stands in its container."""

    place: tuple[str, int | None]
    """File, and line where it has lines: for messages."""
    data: Mapping[str, Any]


def read_examples(source: SourceConfig, seed: int) -> Iterator[Example]:
    """The examples of a source, in its order, each with its id and its row.

    Raises DataError with file and line for rows that can't be read, and for an id that comes twice.
    """
    origin = _origin(source)
    wanted = _wanted_rows(source, origin, seed)
    seen: dict[str, str] = {}
    count = 0
    for example, place in _all_examples(source, origin):
        if source.limit is not None and count >= source.limit:
            break
        if wanted is not None and example.row not in wanted:
            continue
        count += 1
        here = f"line {place[1]}" if place[1] is not None else f"row {example.row + 1}"
        if example.id in seen:
            raise DataError(f"source {source.name}: id {example.id!r} stands twice, {seen[example.id]} and {here}", place[0])
        seen[example.id] = here
        yield example
    if not count:
        raise DataError(f"source {source.name} has no rows", origin.path)


def _all_examples(source: SourceConfig, origin: Origin) -> Iterator[tuple[Example, tuple[str, int | None]]]:
    """Every example, with the place that it comes from."""
    rows = _raw_rows(origin)
    first = next(rows, None)
    if first is None:
        return
    name = _format_of(first, origin)
    if name in TREE_FORMATS:
        yield from _tree_examples(source, origin, name, _chained(first, rows))
        return
    for position, raw in enumerate(_chained(first, rows)):
        try:
            yield _example(source, origin, name, position, raw.data), raw.place
        except DataError as error:
            raise DataError(str(error), *raw.place) from None


def _chained(first: RawRow, rest: Iterator[RawRow]) -> Iterator[RawRow]:
    yield first
    yield from rest


def _format_of(row: RawRow, origin: Origin) -> str:
    try:
        if len(origin.formats) == 1:
            check_columns(origin.formats[0], origin.columns)
            return origin.formats[0]
        return recognise(row.data, origin.columns)
    except DataError as error:
        raise DataError(str(error), row.place[0]) from None


def _example(source: SourceConfig, origin: Origin, name: str, position: int, row: Mapping[str, Any]) -> Example:
    data = _renamed_tags(row, origin) if origin.tags else row
    fields = row_fields(data, name, origin.columns)
    messages = FORMATS[name].messages(fields)
    subtask = fields.get("subtask") if "subtask" in origin.columns else None
    return Example(
        id=_row_id(fields.get("id"), position, messages),
        messages=messages,
        source=source.name,
        row=position,
        subtask=None if subtask is None else str(subtask),
    )


def _row_id(given: Any, position: int, messages: list[Message]) -> str:
    """The user's id, else one made of the row's position and content."""
    if given is not None and str(given).strip():
        return str(given)
    content = json.dumps(messages, ensure_ascii=False).encode()
    return f"{position:07d}-{hashlib.sha256(content).hexdigest()[:12]}"


def _tree_examples(
    source: SourceConfig, origin: Origin, name: str, rows: Iterator[RawRow]
) -> Iterator[tuple[Example, tuple[str, int | None]]]:
    place = (origin.path, None)
    fields = (_tree_fields(raw, name, origin) for raw in rows)
    roots = (row["prompt"] for row in fields) if name == "oasst_trees" else iter(message_trees(fields))
    position = 0
    for root in roots:
        for row_id, messages in oasst_conversations(root, source.language):
            yield Example(row_id, messages, source.name, position), place
            position += 1


def _tree_fields(raw: RawRow, name: str, origin: Origin) -> dict[str, Any]:
    try:
        return {**raw.data, **row_fields(raw.data, name, origin.columns)}
    except DataError as error:
        raise DataError(str(error), *raw.place) from None


def _wanted_rows(source: SourceConfig, origin: Origin, seed: int) -> set[int] | None:
    """The rows of a random sample; None for all."""
    if origin.sample is None:
        return None
    total = sum(1 for _ in _all_examples(source, origin))
    if total <= origin.sample:
        return None
    drawn = np.random.default_rng(seed).permutation(total)[: origin.sample]
    return {int(position) for position in drawn}


def source_fingerprint(source: SourceConfig) -> str:
    """Identifies the content of a source, whatever its path."""
    origin = _origin(source)
    if origin.is_hub:
        dataset = _hub_dataset(origin)
        return fingerprint([str(dataset.info.download_checksums or dataset._fingerprint), dataset.num_rows])
    return fingerprint([file_sha256(path) for path in _content_files(origin)])


def selected_lines(source: SourceConfig, seed: int, rows: Collection[int]) -> dict[int, bytes]:
    """JSON lines of the given rows in the user's own schema; a line of a JSONL file stays byte for byte as it was.

    Where one row of the file is not one example (Open Assistant), the line is the conversation that was scored.
    """
    origin, wanted = _origin(source), set(rows)
    first = next(_raw_rows(origin))
    if _format_of(first, origin) in TREE_FORMATS:
        examples = (example for example, _ in _all_examples(source, origin) if example.row in wanted)
        return {example.row: _json_line({"id": example.id, "messages": example.messages}) for example in examples}
    if not origin.is_hub and all(_suffix(path) in LINE_SUFFIXES for path in _content_files(origin)):
        lines = (line for path in _content_files(origin) for _, line in _lines(path))
        return {position: line for position, line in enumerate(lines) if position in wanted}
    return {
        position: _json_line(raw.data) for position, raw in enumerate(_raw_rows(origin)) if position in wanted
    }


def _json_line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=str).encode()


def _origin(source: SourceConfig) -> Origin:
    """Look up preset or LLaMA-Factory entry, and tell a path from a hub name."""
    if source.llamafactory is not None:
        return _llamafactory_origin(source, source.llamafactory)
    path, formats, sample = source.path, (source.format,) if source.format else (), source.sample
    if source.preset is not None:
        preset = PRESETS[source.preset]
        formats = formats or preset.formats
        sample = sample or (None if source.limit else preset.paper_rows)
        path = path or preset.hub
        if path is None:
            raise DataError(
                f"preset {source.preset} is not on the hub: download it ({preset.published_at}) and give its path"
            )
    assert path is not None
    return Origin(path, _is_hub(path), formats, source.columns, source.split, source.subset, sample)


def _is_hub(path: str) -> bool:
    """Whether to look on the hub; raises DataError for what can only be a local path and isn't there."""
    if Path(path).expanduser().exists():
        return False
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or _suffix(Path(path)) in DATA_SUFFIXES
    if looks_local:
        raise DataError("there is no such file or folder", path)
    return True


def _raw_rows(origin: Origin) -> Iterator[RawRow]:
    """All rows of a source, in order."""
    path = Path(origin.path).expanduser()
    if origin.is_hub:
        yield from (RawRow((origin.path, None), row) for row in _hub_dataset(origin))
    elif _is_saved_dataset(path):
        yield from (RawRow((origin.path, None), row) for row in _saved_dataset(path, origin.split))
    else:
        for file in _data_files(path):
            yield from _file_rows(file, origin)


def _content_files(origin: Origin) -> list[Path]:
    path = Path(origin.path).expanduser()
    if _is_saved_dataset(path):
        return sorted(path.rglob("*.arrow"))
    return _data_files(path)


def _data_files(path: Path) -> list[Path]:
    """The file itself, or the data files of a folder by name; raises DataError where there are none, or two kinds."""
    if path.is_file():
        return [path]
    files = sorted(file for file in path.iterdir() if _suffix(file) in DATA_SUFFIXES)
    kinds = sorted({_suffix(file) for file in files})
    if not files:
        raise DataError(f"the folder has no data file ({', '.join(DATA_SUFFIXES)})", path)
    if len(kinds) > 1:
        raise DataError(f"the folder has files of several kinds ({', '.join(kinds)}): name one", path)
    return files


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _file_rows(path: Path, origin: Origin) -> Iterator[RawRow]:
    """The rows of one file, by its suffix."""
    suffix = _suffix(path)
    if suffix in LINE_SUFFIXES:
        for number, line in _lines(path):
            yield RawRow((str(path), number), _parsed(line, path, number))
    elif suffix == ".json":
        yield from (RawRow((str(path), None), row) for row in _json_list(path))
    elif suffix in (".csv", ".tsv"):
        yield from _table_rows(path, origin)
    elif suffix == ".parquet":
        yield from _parquet_rows(path)
    else:
        raise DataError(f"is of no known kind ({', '.join(DATA_SUFFIXES)}, also .gz)", path)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number, bytes without the line's end) of every line that isn't blank."""
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(BOM) if number == 1 else line
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"is a damaged gzip file: {error}", path) from error


def _parsed(line: bytes, path: Path, number: int) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8: {error.reason}", path, number) from error
    except json.JSONDecodeError as error:
        raise DataError(f"broken JSON: {error.msg} at column {error.colno}", path, number) from error
    if not isinstance(row, dict):
        raise DataError(f"holds {type(row).__name__}, not an object", path, number)
    return row


def _json_list(path: Path) -> list[Mapping[str, Any]]:
    try:
        with _open(path) as file:
            value = json.load(file)
    except (UnicodeDecodeError, json.JSONDecodeError, EOFError, gzip.BadGzipFile) as error:
        line = getattr(error, "lineno", None)
        raise DataError(f"broken JSON: {getattr(error, 'msg', error)}", path, line) from error
    lists = [item for item in value.values() if isinstance(item, list)] if isinstance(value, dict) else [value]
    if len(lists) != 1 or not isinstance(lists[0], list) or not all(isinstance(row, dict) for row in lists[0]):
        raise DataError("is not a list of objects, nor an object with one such list", path)
    return lists[0]


def _table_rows(path: Path, origin: Origin) -> Iterator[RawRow]:
    """CSV and TSV with a header; FLAN's chain-of-thought tables have none, and no quoting."""
    is_cot = _suffix(path) == ".tsv" and "cot" in origin.formats
    settings: dict[str, Any] = {"delimiter": "\t" if _suffix(path) == ".tsv" else ","}
    if is_cot:
        settings |= {"fieldnames": COT_COLUMNS, "quoting": csv.QUOTE_NONE}
    csv.field_size_limit(1 << 30)
    try:
        with _open(path) as file:
            text = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(file))
            reader = csv.DictReader(text, strict=not is_cot, **settings)
            for row in reader:
                if None in row or None in row.values():
                    raise DataError("has more or fewer fields than the header", path, reader.line_num)
                yield RawRow((str(path), reader.line_num), row)
    except (csv.Error, UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"can't be read as a table: {error}", path) from error


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            yield from (RawRow((str(path), None), row) for row in batch.to_pylist())
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"can't be read as parquet: {error}", path) from error


def _is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()


def _saved_dataset(path: Path, split: str | None) -> Any:
    import datasets

    saved = datasets.load_from_disk(str(path))
    if not isinstance(saved, datasets.DatasetDict):
        return saved
    wanted = split or "train"
    if wanted not in saved:
        raise DataError(f"has no split {wanted!r}; it has {', '.join(map(str, saved))}", path)
    return saved[wanted]


def _hub_dataset(origin: Origin) -> Any:
    import datasets

    try:
        return datasets.load_dataset(origin.path, origin.subset, split=origin.split or "train")
    except Exception as error:  # the hub client raises a dozen kinds, from httpx to ValueError
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"is no file here, and can't be loaded from the hub: {reason}", origin.path) from error


def _llamafactory_origin(source: SourceConfig, entry: LlamaFactoryEntry) -> Origin:
    folder = Path(entry.dataset_dir).expanduser()
    info_file = folder / "dataset_info.json"
    if not info_file.is_file():
        raise DataError("there is no such file", info_file)
    info = json.loads(info_file.read_text(encoding="utf-8"))
    if entry.dataset not in info:
        raise DataError(f"has no entry {entry.dataset!r}{nearest(entry.dataset, info)}", info_file)
    described = info[entry.dataset]
    if described.get("ranking"):
        raise DataError(f"entry {entry.dataset} is of preference pairs (ranking), not of conversations", info_file)
    origin = Origin(
        path=_llamafactory_path(described, folder, info_file, entry.dataset),
        is_hub="file_name" not in described,
        formats=(),
        columns={},
        split=source.split or described.get("split"),
        subset=source.subset or described.get("subset"),
        sample=source.sample or described.get("num_samples"),
    )
    columns, tags = described.get("columns", {}), described.get("tags", {})
    if described.get("formatting", "alpaca") == "alpaca":
        return replace(origin, formats=("alpaca",), columns={**_alpaca_columns(columns), **source.columns})
    return replace(
        origin, formats=("sharegpt",), columns=source.columns, tags={**_sharegpt_tags(tags), **_turns_column(columns)}
    )


def _llamafactory_path(described: Mapping[str, Any], folder: Path, info_file: Path, name: str) -> str:
    if "file_name" in described:
        path = folder / described["file_name"]
        if not path.exists():
            raise DataError("there is no such file or folder", path)
        return str(path)
    if "hf_hub_url" in described:
        return str(described["hf_hub_url"])
    raise DataError(f"entry {name} has neither file_name nor hf_hub_url", info_file)


def _alpaca_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """LLaMA-Factory's column names (prompt, query, response, system, history) under our field names."""
    ours = {"prompt": "instruction", "query": "input", "response": "output", "system": "system", "history": "history"}
    return {ours[key]: column for key, column in columns.items() if key in ours}


def _sharegpt_tags(tags: Mapping[str, str]) -> dict[str, str]:
    defaults = {
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "human",
        "assistant_tag": "gpt",
        "observation_tag": "observation",
        "function_tag": "function_call",
        "system_tag": "system",
    }
    return {**defaults, **tags}


def _turns_column(columns: Mapping[str, str]) -> dict[str, str]:
    return {"messages": columns.get("messages", "conversations"), "system": columns.get("system", "system")}


def _renamed_tags(row: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """A ShareGPT row of LLaMA-Factory in ShareGPT's own names."""
    tags = origin.tags or {}
    roles = {
        tags["user_tag"]: "human",
        tags["assistant_tag"]: "gpt",
        tags["observation_tag"]: "observation",
        tags["function_tag"]: "function_call",
        tags["system_tag"]: "system",
    }
    if tags["messages"] not in row:
        raise DataError(f"there is no column {tags['messages']!r}; the columns are {', '.join(row)}")
    turns = [
        {"from": roles.get(item.get(tags["role_tag"])), "value": item.get(tags["content_tag"])}
        for item in row[tags["messages"]]
    ]
    return {"id": row.get("id"), "conversations": turns, "system": row.get(tags["system"])}
