"""`open_container`: what a location leads to, data files, a folder of them, or a table of `datasets`."""

from __future__ import annotations

import re
from functools import cache, partial
from pathlib import Path

from gradsift.data.containers import Container, Location
from gradsift.data.files import FILE_KINDS, DataFiles, data_files, suffix
from gradsift.data.tables import Table, is_saved_table, load_from_hub, load_saved, split_folder
from gradsift.errors import ConfigError, DataError

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def open_container(location: Location) -> Container:
    """Raises DataError where nothing has that name here, nor could have on the hub."""
    path = Path(location.place).expanduser()
    local = path.exists() or _looks_like_a_file(location.place) if location.on_hub is None else not location.on_hub
    if not local:
        return Table(location.place, cache(partial(load_from_hub, location)))
    if not path.exists():
        raise DataError("there is no such file or folder", location.place)
    if is_saved_table(path):
        folder = split_folder(path, location.split)
        return Table(str(path), cache(partial(load_saved, folder)), folder)
    _require_no_splits(location)
    paths = data_files(path) if path.is_dir() else [path]
    if suffix(paths[0]) not in FILE_KINDS:
        raise DataError(f"is no kind of file that can be read; known: {', '.join(FILE_KINDS)} (and .gz)", path)
    return DataFiles(str(path), paths, location.headerless)


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
