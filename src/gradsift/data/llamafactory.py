"""LLaMA-Factory's `dataset_info.json`: where a dataset is, and which of its columns are what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradsift.data.containers import Location
from gradsift.data.files import json_document
from gradsift.data.formats import FORMATS, Format, sharegpt_with
from gradsift.data.turns import CALLS, ROLES, SHAREGPT_TURNS, Turns
from gradsift.data.values import listed
from gradsift.errors import DataError, nearest

ALPACA_FIELDS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "system": "system",
    "tools": "tools",
}
SHAREGPT_FIELDS = {"messages": "conversations", "system": "system", "tools": "tools"}
ENTRY_COLUMNS_REFUSED = ("images", "videos", "audios", "chosen", "rejected", "kto_tag")
"""Columns without which a row isn't what LLaMA-Factory would train on."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of dataset_info.json, in our terms."""

    location: Location
    formatting: str
    form: Format
    columns: Mapping[str, str]
    num_samples: int | None
    described: Mapping[str, Any]
    """As it stands in the file."""


def read_entry(dataset_dir: str, dataset: str) -> Entry:
    """An entry of dataset_info.json. Raises DataError where there is none, or none that can be read."""
    info = Path(dataset_dir).expanduser() / "dataset_info.json"
    entry = _entry(info, dataset)
    form, columns = _entry_format(info, dataset, entry)
    on_hub = "hf_hub_url" in entry
    options = {"data_dir": entry.get("folder"), "revision": entry.get("revision")} if on_hub else {}
    location = Location(
        place=str(entry["hf_hub_url"] if on_hub else info.parent / entry["file_name"]),
        split=entry.get("split"),
        subset=entry.get("subset") if on_hub else None,
        on_hub=on_hub,
        hub_options={name: value for name, value in options.items() if value is not None},
    )
    return Entry(location, str(entry.get("formatting", "alpaca")), form, columns, entry.get("num_samples"), entry)


def _entry(info: Path, name: str) -> Mapping[str, Any]:
    if not info.is_file():
        raise DataError("there is no such file; llamafactory.dataset_dir is the folder that holds it", info)
    entries = json_document(info)
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
    roles = {"system": "system", "user": "user", "assistant": "assistant", "observation": "tool", "function": CALLS}
    named = {tags[f"{role}_tag"]: known for role, known in roles.items() if f"{role}_tag" in tags}
    return Turns(
        (tags["role_tag"],) if "role_tag" in tags else SHAREGPT_TURNS.role_keys,
        (tags["content_tag"],) if "content_tag" in tags else SHAREGPT_TURNS.content_keys,
        {**ROLES, **named},
    )
