"""Records vouch for their files and for themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gradsift.errors import RunFolderError
from gradsift.machine import records
from gradsift.machine.artifact import atomic_open, read_json, read_parquet, remove_leftovers, write_json
from gradsift.machine.records import finished_facts, read_record, renewed, write_record


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """A record of one file."""
    (tmp_path / "data").write_bytes(b"content")
    with renewed(tmp_path / "data.json", tmp_path / "data") as facts:
        facts["from"] = "here"
    return tmp_path / "data.json"


def test_what_was_written_is_finished(record: Path) -> None:
    assert finished_facts(record, [record.with_suffix("")], ["from"]) == {"from": "here"}


@pytest.mark.parametrize("content", [b"", b"conten", b"contenT", b"content "])
def test_a_changed_file_is_to_be_made_again(record: Path, content: bytes) -> None:
    record.with_suffix("").write_bytes(content)
    assert finished_facts(record, []) is None


def test_a_lost_file_is_to_be_made_again(record: Path) -> None:
    record.with_suffix("").unlink()
    assert finished_facts(record, []) is None


def test_a_large_file_is_checked_at_both_ends_and_between(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LARGEST_WHOLE_BYTES", 3)
    monkeypatch.setattr(records, "SAMPLED_BLOCK_BYTES", 2)
    write_record(record, {"from": "here"}, [record.with_suffix("")])
    assert finished_facts(record, []) is not None
    for content in (b"Content", b"conTent", b"contenT", b"contentt"):
        record.with_suffix("").write_bytes(content)
        assert finished_facts(record, []) is None


def test_the_record_goes_before_its_file_changes(record: Path) -> None:
    with pytest.raises(RuntimeError), renewed(record, record.with_suffix("")):
        assert not record.exists()
        raise RuntimeError("killed")
    assert not record.exists()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"from": "there"}, "differs from its checksum"),
        ({"more": 1}, "differs from its checksum"),
        ({"files": {}}, "differs from its checksum"),
    ],
)
def test_a_changed_fact_is_named(record: Path, change: dict[str, Any], why: str) -> None:
    record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
    with pytest.raises(RunFolderError, match=rf"data\.json: is damaged \({why}.*delete it to have it made again"):
        read_record(record)


@pytest.mark.parametrize("content", ["", "{", "nothing", "[" * 100_000, "[]", "null", "3", '"text"', "{}"])
def test_what_is_no_record_is_named(record: Path, content: str) -> None:
    record.write_text(content)
    with pytest.raises(RunFolderError, match=r"data\.json: is damaged"):
        read_record(record, ["from"])


def test_invalid_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(RunFolderError, match=r"facts\.json: is damaged"):
        read_json(tmp_path / "facts.json")


def test_records_without_checksums_are_believed(tmp_path: Path) -> None:
    write_json(tmp_path / "old.json", {"from": "before"})
    assert finished_facts(tmp_path / "old.json", [], ["from"]) == {"from": "before"}


def test_values_that_json_changes_are_those_that_come_back(tmp_path: Path) -> None:
    write_record(tmp_path / "facts.json", {"pair": (1, 2.5), "by": {3: float("nan")}, "text": "ä\u2028"})
    found = read_record(tmp_path / "facts.json").facts
    assert found["pair"] == [1, 2.5]
    assert list(found["by"]) == ["3"]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", None])
def test_damaged_and_lost_parquet_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "rows.parquet").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"rows\.parquet: is damaged"):
        read_parquet(tmp_path / "rows.parquet")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), tmp_path / "rows.parquet")
    assert read_parquet(tmp_path / "rows.parquet", ["a"]).num_rows == 1
    with pytest.raises(RunFolderError, match="has no column b"):
        read_parquet(tmp_path / "rows.parquet", ["a", "b"])


def test_a_file_in_a_folders_place_and_the_other_way_round_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunFolderError, match="is a file where a folder belongs"), atomic_open(tmp_path / "file" / "x"):
        pass
    with pytest.raises(RunFolderError, match="is a folder where a file belongs"), atomic_open(tmp_path / "folder"):
        pass


def test_folders_left_behind_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".less.tmp").mkdir()
    (tmp_path / ".less.tmp" / "file").touch()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
