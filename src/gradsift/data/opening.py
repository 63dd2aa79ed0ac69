"""`open_container`: what a location leads to, data files, a folder of them, or a table of `datasets`."""

from __future__ import annotations

import re
from functools import cache, partial
from glob import has_magic
from pathlib import Path

from gradsift.data.containers import Container, Location
from gradsift.data.files import FILE_KINDS, DataFiles, data_files, matching_files, suffix
from gradsift.data.tables import Table, is_saved_table, load_from_hub, load_saved, split_folder
from gradsift.errors import ConfigError, DataError

MAX_SHOWN = 200
"""Characters of a path in an error about its length."""
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def open_container(location: Location) -> Container:
    """Raises DataError where nothing has that name here, nor could have on the hub."""
    path = _path(location.place)
    local = _exists(path) or _looks_like_a_file(location.place) if location.on_hub is None else not location.on_hub
    if not local:
        return Table(location.place, cache(partial(load_from_hub, location)))
    if _exists(path) and is_saved_table(path):
        folder = split_folder(path, location.split)
        return Table(str(path), cache(partial(load_saved, folder)), folder)
    paths = _files(path, location.place)
    _require_no_splits(location)
    return DataFiles(str(path), paths, location.headerless)


def _path(place: str) -> Path:
    try:
        return Path(place).expanduser()
    except RuntimeError as error:
        raise DataError("there is no user of that name here", place) from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise DataError(f"can't be looked up: {error.strerror}", str(path)[:MAX_SHOWN]) from error


def _files(path: Path, place: str) -> list[Path]:
    """The data files at a place that exists, or that a pattern fits; a name that exists is no pattern."""
    if not _exists(path):
        if not has_magic(place):
            raise DataError("there is no such file or folder", place)
        return matching_files(str(path))
    if path.is_dir():
        return data_files(path)
    if not path.is_file():
        raise DataError("is a pipe, a socket or a device: write the rows to a file", path)
    if suffix(path) not in FILE_KINDS:
        raise DataError(f"is no kind of file that can be read; known: {', '.join(FILE_KINDS)} (and .gz)", path)
    return [path]


def _looks_like_a_file(place: str) -> bool:
    path = Path(place)
    bare = "/" not in place
    return (
        place.startswith((".", "/", "~"))
        or suffix(path) in FILE_KINDS
        or (bare and path.suffix != "")
        or HUB_NAME.fullmatch(place) is None
    )


def _require_no_splits(location: Location) -> None:
    if location.split not in (None, "train"):
        raise ConfigError(f"{location.place}: files have no splits; leave out split: {location.split}")
    if location.subset is not None:
        raise ConfigError(f"{location.place}: files have no subsets; leave out subset: {location.subset}")
