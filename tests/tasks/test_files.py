from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from gradsift.errors import DataError
from gradsift.tasks.files import validation_rows

from .conftest import WriteJsonl


def test_only_validation_rows_are_read_where_there_is_a_split(write_jsonl: WriteJsonl) -> None:
    path = write_jsonl([{"split": "test", "n": 0}, {"split": "val", "n": 1}])
    assert [(row.fields["n"], row.line) for row in validation_rows(path)] == [(1, 2)]


def test_every_row_is_read_where_there_is_no_split(write_jsonl: WriteJsonl) -> None:
    assert len(validation_rows(write_jsonl([{"n": 0}, {"n": 1}]))) == 2


def test_a_row_without_split_beside_rows_with_one_is_refused(write_jsonl: WriteJsonl) -> None:
    with pytest.raises(DataError, match="line 2: no field 'split'"):
        validation_rows(write_jsonl([{"split": "val"}, {"n": 1}]))


def test_no_validation_row_is_refused_with_the_splits_there_are(write_jsonl: WriteJsonl) -> None:
    with pytest.raises(DataError, match=r"without examples: no row has split 'val'; .* dev, test"):
        validation_rows(write_jsonl([{"split": "test"}, {"split": "dev"}]))


def test_gzipped_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress('{"question": "où?"}\n'.encode()))
    assert validation_rows(path)[0].text("question") == "où?"


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"n": 0}\r\n\r\n{"n": 1}')
    assert [row.line for row in validation_rows(path)] == [1, 3]


def test_unicode_line_separator_inside_a_text_does_not_end_the_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a\u2028b"}\n', encoding="utf-8")
    assert validation_rows(path)[0].text("question") == "a\u2028b"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"n": 0}\n{"n": \n', r"rows\.jsonl, line 2: broken JSON: "),
        (b'{"n": 0}\n[1]\n', r"rows\.jsonl, line 2: not a JSON object but list"),
        (b'{"n": "\xff"}\n', r"rows\.jsonl: can't be read: .*utf-8"),
    ],
)
def test_unreadable_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        validation_rows(path)


@pytest.mark.parametrize("content", [b"not gzip", gzip.compress(b'{"n": 0}\n' * 99)[:-12]])
def test_damaged_gzip_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: can't be read"):
        validation_rows(path)


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("hello")
    with pytest.raises(DataError, match=r"neither JSONL \(\.jsonl, \.jsonl\.gz\) nor"):
        validation_rows(path)
