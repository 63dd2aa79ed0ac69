"""Files are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradsift.machine.artifact import atomic_open, atomic_path, fingerprint, read_json, remove_leftovers, write_json


def test_failed_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    write_json(path, {"kept": 1})
    with pytest.raises(RuntimeError), atomic_open(path) as file:
        file.write(b"half")
        raise RuntimeError("interrupted")
    assert read_json(path) == {"kept": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["facts.json"]


def test_nothing_is_there_before_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "file"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".shard.123.tmp").touch()
    (tmp_path / "shard").touch()
    remove_leftovers(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["shard"]


def test_fingerprint_follows_values_not_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})
