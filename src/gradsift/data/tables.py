"""Tables of the `datasets` library, saved in a folder or published on the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsift.data.arrow_rows import arrow_rows
from gradsift.data.containers import Location, RawRow
from gradsift.data.files import BATCH_ROWS, json_document
from gradsift.data.values import first_line, listed
from gradsift.errors import DataError
from gradsift.machine import file_sha256


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the `datasets` library, saved or published."""

    label: str
    load: Callable[[], Any]
    folder: Path | None = None

    def rows(self) -> Iterator[RawRow]:
        """Its rows as Arrow holds them (an image: its bytes and its path); it is loaded when they are asked for."""
        import pyarrow as pa

        table = self.load()
        try:
            for batch in table.with_format("arrow").iter(BATCH_ROWS):
                yield from (RawRow(self.label, None, row) for row in arrow_rows(batch))
        except DataError as error:
            raise DataError(str(error), self.label) from error
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"can't be read: {first_line(error)}", self.label) from error

    def count(self) -> int:
        """How many they are."""
        return len(self.load())

    def digests(self) -> list[str]:
        """SHA-256 of its files, or of the fingerprint of a published one."""
        if self.folder is None:
            return [hashlib.sha256(str(self.load()._fingerprint).encode()).hexdigest()]
        return [file_sha256(path) for path in sorted(self.folder.rglob("*.arrow"))]


def is_saved_table(path: Path) -> bool:
    """Whether the folder is one that `save_to_disk` wrote."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    )


def load_saved(folder: Path) -> Any:
    """The table in the folder; raises DataError where it can't be read."""
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # the errors of three libraries, with no root but this one
        raise DataError(f"can't be read as a saved dataset: {first_line(error)}", folder) from error


def split_folder(path: Path, split: str | None) -> Path:
    """The folder of one split. Raises DataError listing the splits where it has no such one."""
    wanted, described = split or "train", path / "dataset_dict.json"
    splits = _splits(described) if described.is_file() else []
    if not splits and wanted == "train":
        return path
    if wanted not in splits:
        raise DataError(f"has no split {wanted!r}; the splits there are: {listed(splits)}", path)
    return path / wanted


def _splits(described: Path) -> list[str]:
    value = json_document(described)
    splits = value.get("splits") if isinstance(value, dict) else None
    if not isinstance(splits, list):
        raise DataError("has no list of splits: save the dataset again", described)
    return [str(split) for split in splits]


def load_from_hub(location: Location) -> Any:
    """Raises DataError whatever goes wrong: no network, no such dataset, split or subset."""
    import datasets

    try:
        return datasets.load_dataset(
            location.place, location.subset, split=location.split or "train", **location.hub_options
        )
    except Exception as error:  # the errors of four libraries, with no root but this one
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(
            f"is no file or folder here, and can't be loaded from the hub ({reason})", location.place
        ) from error
