"""Records: facts in a JSON file that vouch for the files beside them, and for themselves.

A record is taken away before what it vouches for is written again, and written last, with the checksums of the files
and one of its own facts. So a record that can be read is of the files as they were written, wherever a process was
killed; and a changed file, or a changed fact, is noticed when the record is next believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsift.machine.artifact import damaged, file_sha256, fingerprint, read_json, remove_leftovers, sync, write_json

logger = logging.getLogger(__name__)

CHECKSUM, FILES = "checksum", "files"
LARGEST_WHOLE_BYTES = 1 << 30
"""Files above are checked by a sample: a whole 7B model would take longer to check than to load."""
SAMPLED_BLOCKS, SAMPLED_BLOCK_BYTES = 1024, 1 << 16


@dataclass(frozen=True)
class Record:
    """The facts of a record, and the checksums of the files that it vouches for, by their names from its folder."""

    path: Path
    facts: dict[str, Any]
    files: Mapping[str, Any]

    def changed_file(self) -> Path | None:
        """The first of its files that isn't what was written; None where all are."""
        for name, before in self.files.items():
            path = self.path.parent / name
            if not path.is_file() or file_facts(path) != before:
                return path
        return None


def read_record(path: Path, keys: Sequence[str] = ()) -> Record:
    """The record in `path`. Raises RunFolderError where it isn't what was written, or lacks one of the keys.

    Records made before they had checksums are believed.
    """
    facts = read_json(path)
    if not isinstance(facts, dict):
        raise damaged(path, f"holds a {type(facts).__name__}, no object")
    before = facts.pop(CHECKSUM, None)
    if before is not None and before != fingerprint(facts):
        raise damaged(path, "differs from its checksum")
    lacking = next((key for key in keys if key not in facts), None)
    if lacking is not None:
        raise damaged(path, f"has no {lacking!r}")
    files = facts.pop(FILES, {})
    if not isinstance(files, dict):
        raise damaged(path, f"holds no object under {FILES!r}")
    return Record(path, facts, files)


def finished_facts(path: Path, files: Sequence[Path], keys: Sequence[str] = ()) -> dict[str, Any] | None:
    """The facts of a record whose files are all there as they were written; None of one that counts as not made.

    `files`: those that must be there, also where the record was made before records held checksums.
    """
    if not path.is_file() or not all(file.is_file() for file in files):
        return None
    record = read_record(path, keys)
    changed = record.changed_file()
    if changed is not None:
        logger.warning("%s is not what was written: it counts as not made", changed)
        return None
    return record.facts


def write_record(path: Path, facts: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
    """Write facts that vouch for the files."""
    names = {Path(os.path.relpath(file, path.parent)).as_posix(): file_facts(file) for file in files}
    whole: dict[str, Any] = json.loads(json.dumps({**facts, **({FILES: names} if names else {})}))
    write_json(path, {**whole, CHECKSUM: fingerprint(whole)})


@contextlib.contextmanager
def renewed(path: Path, *files: Path) -> Iterator[dict[str, Any]]:
    """Facts to fill while the files that they vouch for are written: the old record goes first, the new comes last."""
    remove_record(path)
    facts: dict[str, Any] = {}
    yield facts
    write_record(path, facts, files)


def remove_record(path: Path) -> None:
    """Take a record away, and what a killed process left half-written beside it."""
    remove_leftovers(path.parent)
    if path.is_file():
        path.unlink()
        sync(path.parent)


def file_facts(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file; of a large one, of its ends and 1,024 blocks spread over it."""
    size = path.stat().st_size
    if size <= LARGEST_WHOLE_BYTES:
        return {"size": size, "sha256": file_sha256(path)}
    digest, last = hashlib.sha256(), size - SAMPLED_BLOCK_BYTES
    with path.open("rb") as file:
        for block in range(SAMPLED_BLOCKS):
            file.seek(block * last // (SAMPLED_BLOCKS - 1))
            digest.update(file.read(SAMPLED_BLOCK_BYTES))
    return {"size": size, "sampled_sha256": digest.hexdigest()}
