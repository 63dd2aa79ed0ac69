"""What a source is: `SourceConfig`, as the user writes it, and `SourceSettings`, what that comes down to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gradsift.data.containers import Location
from gradsift.data.files import FILE_KINDS, suffix
from gradsift.data.formats import FORMATS, ROW_FIELDS, Format
from gradsift.data.llamafactory import read_entry
from gradsift.data.presets import PRESETS
from gradsift.errors import nearest

MAX_NAME = 200
"""Bytes of the name of a source, a target or a selection: files are called by it, with endings of their own."""


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
    """File, folder, files by a pattern with `*`, or name of a dataset on the hub."""
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
    on_error: Literal["set_aside", "refuse"] = "set_aside"
    """What becomes of a row that can't be read: it is set aside with the reason, or the run ends there."""
    sample: int | None = Field(default=None, ge=1)
    """Rows drawn at random, kept in file order; all of them where there are fewer."""
    sample_seed: int | None = Field(default=None, ge=0)
    """Seed of that draw; None: the run's."""
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
        path = Path(source.path or "")
        name = next((name for name in (_without_kind(path.name), path.parent.name) if re.search(r"\w", name)), "")
    name = re.sub(r"[^\w.+-]+", "_", re.sub(r"[*?\[\]]", "", name)).strip("._+-")
    return name.encode(errors="ignore")[:MAX_NAME].decode(errors="ignore") or "source"


def _without_kind(name: str) -> str:
    kind = suffix(Path(name))
    return name.removesuffix(".gz").removesuffix(kind) if kind in FILE_KINDS else name


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """A source once its preset or its LLaMA-Factory entry has been looked up."""

    name: str
    location: Location
    formats: Mapping[str, Format]
    """The formats that it may have."""
    columns: Mapping[str, str]
    limit: int | None
    sample: int | None
    language: str | None
    entry: Mapping[str, Any] = field(default_factory=dict)
    """LLaMA-Factory's, as it stands."""


def settings_of(source: SourceConfig) -> SourceSettings:
    """The settings once the preset or the LLaMA-Factory entry is looked up; raises ConfigError where it can't be."""
    if source.llamafactory is not None:
        return _llamafactory_settings(source, source.llamafactory)
    formats = FORMATS if source.format is None else {source.format: FORMATS[source.format]}
    settings = SourceSettings(
        name=source.name or "",
        location=Location(source.path or "", source.split, source.subset, headerless=_headerless(formats)),
        formats=formats,
        columns=source.columns,
        limit=source.limit,
        sample=source.sample,
        language=source.language,
    )
    return settings if source.preset is None else _with_preset(settings, source)


def _with_preset(settings: SourceSettings, source: SourceConfig) -> SourceSettings:
    preset = PRESETS[str(source.preset)]
    whole = source.limit is None and source.sample is None
    formats = settings.formats if source.format else {name: FORMATS[name] for name in preset.formats}
    on_hub = Location(
        place=preset.hub,
        split=source.split or preset.split,
        subset=source.subset or preset.subset,
        on_hub=True,
        hub_options={"data_files": list(preset.files)} if preset.files else {},
    )
    return replace(
        settings,
        location=replace(settings.location, headerless=_headerless(formats)) if source.path else on_hub,
        formats=formats,
        sample=preset.num_examples if whole else source.sample,
        language=source.language or preset.language,
    )


def _headerless(formats: Mapping[str, Format]) -> tuple[str, ...]:
    """Columns of a tab-separated file without a header, where the config says which format to expect."""
    if len(formats) == len(FORMATS):
        return ()
    return next((form.headerless for form in formats.values() if form.headerless), ())


def _llamafactory_settings(source: SourceConfig, key: LlamaFactoryEntry) -> SourceSettings:
    entry = read_entry(key.dataset_dir, key.dataset)
    whole = source.limit is None and source.sample is None
    return SourceSettings(
        name=source.name or "",
        location=entry.location,
        formats={entry.formatting: entry.form},
        columns={**entry.columns, **source.columns},
        limit=source.limit,
        sample=entry.num_samples if whole else source.sample,
        language=source.language,
        entry=entry.described,
    )
