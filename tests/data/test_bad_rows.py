"""Rows that can't be read: set aside one by one with their place and reason, refused where they are most."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradsift.data.bad_rows import BadRow
from gradsift.data.example import Example
from gradsift.data.source_settings import SourceConfig
from gradsift.data.sources import read_examples, read_rows, selected_examples, selected_lines
from gradsift.errors import DataError

GOOD = [{"id": f"g{index}", "instruction": f"Ask {index}", "output": f"Say {index}"} for index in range(8)]


def line_of(row: Any) -> bytes:
    return json.dumps(row).encode()


def source_with(folder: Path, bad: bytes, **keys: Any) -> SourceConfig:
    """Eight good rows and a bad one, the fourth line."""
    lines = [line_of(row) for row in GOOD]
    path = folder / "pool.jsonl"
    path.write_bytes(b"\n".join([*lines[:3], bad, *lines[3:]]) + b"\n")
    return SourceConfig(path=str(path), **keys)


BAD_LINES = {
    "cut": (b'{"id": "x", "instruction": "As', "is not valid JSON: Unterminated string"),
    "no JSON": (b"plain text", "is not valid JSON: Expecting value"),
    "no UTF-8": (b'{"id": "x", "instruction": "\xff", "output": "a"}', "is not valid UTF-8 (byte 0xff at position 29)"),
    "no object": (b"[1]", "is a list, not an object"),
    "null": (b"null", "is null, not an object"),
    "deep": (b'{"id": "x", "meta": ' + b"[" * 100_000, "nested too deeply"),
    "number": (line_of({"id": "x", "instruction": "Hi", "output": 3}), "output is a number, not text"),
    "huge number": (
        b'{"id": "x", "instruction": "Hi", "output": ' + b"1" * 5000 + b"}",
        "output is a number, not text",
    ),
    "missing": (line_of({"id": "x", "instruction": "Hi"}), "no column 'output'"),
    "half a pair": (line_of({"id": "x", "instruction": "\ud800", "output": "a"}), "half of a surrogate pair"),
    "half a pair in the id": (line_of({"id": "\udc00", "instruction": "a", "output": "a"}), "id has half"),
}
each_bad_line = pytest.mark.parametrize(("line", "reason"), BAD_LINES.values(), ids=BAD_LINES)


@each_bad_line
def test_bad_line_is_set_aside_with_its_place_and_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    rows = list(read_rows(source_with(tmp_path, line), 0))
    bad = rows[3]
    assert isinstance(bad, BadRow)
    assert reason in bad.reason
    assert (bad.place, bad.row) == (f"{tmp_path}/pool.jsonl, line 4", 3)
    json.dumps([bad.id, bad.reason], ensure_ascii=False).encode()


@each_bad_line
def test_rows_beside_a_bad_one_keep_their_positions(tmp_path: Path, line: bytes, reason: str) -> None:
    source = source_with(tmp_path, line)
    examples = list(read_examples(source, 0))
    assert [example.id for example in examples] == [row["id"] for row in GOOD]
    rows = [example.row for example in examples]
    assert rows == [0, 1, 2, 4, 5, 6, 7, 8]
    assert [selected_examples(source, rows)[row] for row in rows] == examples
    assert [selected_lines(source, rows)[row] for row in rows] == [line_of(row) for row in GOOD]


@each_bad_line
def test_bad_line_is_refused_where_the_source_says_so(tmp_path: Path, line: bytes, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        list(read_rows(source_with(tmp_path, line, on_error="refuse"), 0))
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/pool.jsonl, line 4: ")


def test_bad_row_is_known_by_its_id_where_that_can_be_read(tmp_path: Path) -> None:
    assert list(read_rows(source_with(tmp_path, BAD_LINES["number"][0]), 0))[3].id == "x"
    assert list(read_rows(source_with(tmp_path, BAD_LINES["cut"][0]), 0))[3].id == "0000003"


def test_source_most_of_whose_rows_are_bad_is_refused_with_the_first(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_bytes(b"\n".join([line_of(GOOD[0]), b"{", b"{]", line_of(GOOD[1]), b"}"]))
    with pytest.raises(DataError, match=r"3 of 5 rows can't be read.*the first is .*pool\.jsonl, line 2: is not valid"):
        list(read_rows(SourceConfig(path=str(path)), 0))


def test_half_of_the_rows_is_not_most(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_bytes(b"\n".join([line_of(GOOD[0]), b"{", line_of(GOOD[1]), b"}"]))
    assert [isinstance(row, Example) for row in read_rows(SourceConfig(path=str(path)), 0)] == [True, False] * 2


def test_sample_draws_the_rows_that_it_would_draw_of_good_ones(tmp_path: Path) -> None:
    source = source_with(tmp_path, b"{", sample=5)
    drawn = [row.row for row in read_rows(source, 1)]
    whole = source_with(tmp_path, line_of({**GOOD[0], "id": "x"}), sample=5)
    assert drawn == [row.row for row in read_rows(whole, 1)]


def test_two_rows_of_one_id_are_refused_by_default(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the id 'g0' stands twice"):
        list(read_rows(source_with(tmp_path, line_of(GOOD[0])), 0))


def test_row_of_a_table_with_too_few_cells_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "pool.csv"
    path.write_bytes(b"instruction,output\na,b\nc\nd,e\n\xff,f\ng,h\n")
    bad = [row for row in read_rows(SourceConfig(path=str(path)), 0) if isinstance(row, BadRow)]
    assert [(row.place.rpartition(", ")[2], row.reason) for row in bad] == [
        ("line 3", "has 1 cells for 2 columns (instruction, output)"),
        ("line 5", "is not valid UTF-8 (byte 0xff in column 'instruction')"),
    ]


def test_half_of_a_pair_in_a_tables_valid_text_is_no_byte(tmp_path: Path) -> None:
    path = tmp_path / "pool.csv"
    path.write_bytes("instruction,output\n\U0001f600é,b\n".encode())
    assert next(read_examples(SourceConfig(path=str(path)), 0)).messages[0]["content"] == "\U0001f600é"


def parquet(folder: Path, **columns: Any) -> SourceConfig:
    table = {"instruction": pa.array(["a", "b", "c"]), "output": pa.array(["x", "y", "z"]), **columns}
    pq.write_table(pa.table(table), folder / "pool.parquet")
    return SourceConfig(path=str(folder / "pool.parquet"))


def invalid_text() -> pa.Array:
    good = pa.array([b"a", b"\xff\xfe", b"c"])
    return pa.StringArray.from_buffers(3, good.buffers()[1], good.buffers()[2])


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (invalid_text(), "column 'extra' can't be read: 'utf-8' codec can't decode byte 0xff"),
        (pa.array([0, 2**31 - 1, 1], pa.int32()).cast(pa.date32()), "column 'extra' can't be read: days="),
        (pa.array([0, 2**62, 1], pa.int64()).cast(pa.timestamp("us")), "column 'extra' can't be read: date value"),
    ],
    ids=["no UTF-8", "date", "time"],
)
def test_value_of_parquet_that_python_lacks_costs_its_row_alone(tmp_path: Path, column: pa.Array, reason: str) -> None:
    rows = list(read_rows(parquet(tmp_path, extra=column), 0))
    assert [isinstance(row, BadRow) for row in rows] == [False, True, False]
    assert isinstance(rows[1], BadRow)
    assert rows[1].reason.startswith(reason)
    assert rows[1].place.endswith("pool.parquet, row 1")


def test_columns_of_one_name_in_parquet_are_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["output", "output"])
    pq.write_table(table, tmp_path / "pool.parquet")
    with pytest.raises(DataError, match=r"pool\.parquet: two columns have the same name: output, output"):
        list(read_rows(SourceConfig(path=str(tmp_path / "pool.parquet")), 0))


def test_tree_that_cannot_be_read_is_set_aside_and_counted(tmp_path: Path) -> None:
    def tree(name: str, text: Any) -> dict[str, Any]:
        answer = {"message_id": f"{name}-a", "role": "assistant", "text": "Yes."}
        return {
            "message_tree_id": name,
            "prompt": {"message_id": name, "role": "prompter", "text": text, "replies": [answer]},
        }

    path = tmp_path / "trees.jsonl"
    path.write_bytes(b"\n".join(line_of(tree(name, text)) for name, text in [("a", "?"), ("b", 3), ("c", "?")]))
    source = SourceConfig(path=str(path))
    rows = list(read_rows(source, 0))
    assert [(row.row, isinstance(row, BadRow)) for row in rows] == [(0, False), (1, True), (2, False)]
    assert isinstance(rows[1], BadRow)
    assert rows[1].place == f"{path}, line 2"
    assert json.loads(selected_lines(source, [2])[2])["id"] == "c-a"


def test_message_of_a_table_that_cannot_be_read_is_set_aside(tmp_path: Path) -> None:
    rows = [
        {"message_id": "q", "parent_id": None, "role": "prompter", "text": "?"},
        {"message_id": "a", "parent_id": "q", "role": "assistant", "text": "Yes."},
        {"message_id": "b", "parent_id": "q", "role": "assistant", "text": None},
    ]
    path = tmp_path / "messages.jsonl"
    path.write_bytes(b"\n".join(map(line_of, rows)))
    read = list(read_rows(SourceConfig(path=str(path)), 0))
    assert isinstance(read[0], BadRow)
    assert (read[0].place, read[1].id) == (f"{path}, line 3", "a")


# A broken container is no bad row


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("pool.jsonl.gz", gzip.compress(b"\n".join(map(line_of, GOOD)))[:-9], "is not a whole gzip file"),
        ("pool.json", b"[" + line_of(GOOD[0]) + b", {", "is not valid JSON"),
        ("pool.json", b"[" * 100_000, "nested too deeply"),
        ("pool.json", b'["\xff"]', "is not valid UTF-8"),
        ("pool.csv", b'instruction,output\na,"b', "is no table"),
        ("pool.csv", b"instruction,\xff\na,b", "is not valid UTF-8"),
        ("pool.parquet", b"PAR1 nothing", "is not a parquet file"),
        ("pool.jsonl", b"", "is empty"),
    ],
)
def test_broken_container_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        list(read_rows(SourceConfig(path=str(tmp_path / name)), 0))


def test_parquet_file_that_may_not_be_read_is_not_called_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = parquet(tmp_path)

    def forbidden(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pq, "ParquetFile", forbidden)
    with pytest.raises(DataError, match=r"pool\.parquet: can't be read: \[Errno 13\] Permission denied"):
        list(read_rows(source, 0))


# JSON columns, and what JSON lacks


def as_parquet(dataset: Any, folder: Path) -> Path:
    dataset.to_parquet(str(folder / "pool.parquet"))
    return folder / "pool.parquet"


def as_saved(dataset: Any, folder: Path) -> Path:
    dataset.save_to_disk(str(folder / "saved"))
    return folder / "saved"


@pytest.mark.parametrize("write", [as_parquet, as_saved])
def test_json_columns_come_as_datasets_reads_them(tmp_path: Path, write: Callable[[Any, Path], Path]) -> None:
    import datasets

    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    columns = {
        "id": ["a", "b"],
        "messages": [turns, turns],
        "meta": [{"n": 1}, ["x", None]],
        "nested": [[{"a": 1}, "text"], None],
    }
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "messages": datasets.Json(),
            "meta": datasets.Json(),
            "nested": datasets.List(datasets.Json()),
        }
    )
    dataset = datasets.Dataset.from_dict(columns, features=features)
    source = SourceConfig(path=str(write(dataset, tmp_path)))
    assert [example.messages for example in read_examples(source, 0)] == [turns, turns]
    assert [json.loads(selected_lines(source, [row])[row]) for row in (0, 1)] == list(dataset)


def test_json_column_whose_mark_is_in_the_metadata_alone_is_read(tmp_path: Path) -> None:
    marked = {"info": {"features": {"messages": {"_type": "Json"}}}}
    text = json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}])
    table = pa.table({"messages": [text]}).replace_schema_metadata({"huggingface": json.dumps(marked)})
    pq.write_table(table, tmp_path / "pool.parquet")
    assert next(read_examples(SourceConfig(path=str(tmp_path / "pool.parquet")), 0)).messages[1]["content"] == "Ho"


def test_json_column_that_is_no_json_costs_its_row_alone(tmp_path: Path) -> None:
    column = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}", "{", "1"]))
    rows = list(read_rows(parquet(tmp_path, meta=column), 0))
    assert isinstance(rows[1], BadRow)
    assert "column 'meta' is not valid JSON" in rows[1].reason
    assert [isinstance(row, BadRow) for row in rows] == [False, True, False]


def test_values_that_json_lacks_stay_valid_json_in_the_selected_line(tmp_path: Path) -> None:
    source = parquet(tmp_path, score=pa.array([float("nan"), 1.5, float("inf")]), image=pa.array([b"\xff", b"", None]))
    lines = selected_lines(source, [0, 1, 2])
    found = [json.loads(lines[row], parse_constant=pytest.fail) for row in range(3)]
    assert [(row["score"], row["image"]) for row in found] == [(None, "/w=="), (1.5, ""), (None, None)]


def test_nan_in_a_line_becomes_null_and_the_rest_stays_byte_for_byte(tmp_path: Path) -> None:
    line = b'{"instruction" : "NaN",  "output":"b", "q": NaN, "big": ' + b"7" * 5000 + b"}"
    source = source_with(tmp_path, line)
    assert selected_lines(source, [3])[3] == line.replace(b": NaN,", b": null,")


def test_number_of_any_size_in_a_document_comes_through(tmp_path: Path) -> None:
    digits = "7" * 5000
    row = f'{{"instruction": "a", "output": "b", "n": {digits}, "f": 1e999}}'
    (tmp_path / "pool.json").write_text(f"[{row}]")
    assert selected_lines(SourceConfig(path=str(tmp_path / "pool.json")), [0]) == {0: row.encode()}


def test_number_of_any_size_may_be_an_id(tmp_path: Path) -> None:
    line = b'{"id": ' + b"7" * 5000 + b', "instruction": "a", "output": "b"}'
    assert list(read_rows(source_with(tmp_path, line), 0))[3].id == "7" * 5000


# Places


def write_parts(folder: Path) -> None:
    for index, row in enumerate(GOOD[:4]):
        (folder / f"part-{3 - index}.jsonl").write_bytes(line_of(row))


def test_pattern_reads_the_files_that_it_fits_by_name(tmp_path: Path) -> None:
    write_parts(tmp_path)
    (tmp_path / "other.jsonl").write_bytes(line_of(GOOD[5]))
    source = SourceConfig(path=f"{tmp_path}/part-[0-2]*.jsonl")
    assert [example.id for example in read_examples(source, 0)] == ["g3", "g2", "g1"]
    assert source.name == "part-0-2"


@pytest.mark.parametrize(("path", "name"), [("data/*.jsonl", "data"), ("mix-*.jsonl.gz", "mix"), ("**", "source")])
def test_pattern_gives_a_name(path: str, name: str) -> None:
    assert SourceConfig(path=path).name == name


def test_pattern_looks_at_any_depth_with_two_stars(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    write_parts(tmp_path / "a" / "b")
    assert len(list(read_examples(SourceConfig(path=f"{tmp_path}/**/*.jsonl"), 0))) == 4


def test_name_with_a_star_that_exists_is_that_file(tmp_path: Path) -> None:
    write_parts(tmp_path)
    (tmp_path / "part-*.jsonl").write_bytes(line_of(GOOD[7]))
    assert [row.id for row in read_examples(SourceConfig(path=f"{tmp_path}/part-*.jsonl"), 0)] == ["g7"]


def test_pattern_of_several_kinds_is_refused(tmp_path: Path) -> None:
    write_parts(tmp_path)
    (tmp_path / "part.csv").write_text("instruction,output\n")
    with pytest.raises(DataError, match=r"the pattern fits files of several kinds \(\.csv, \.jsonl\)"):
        list(read_rows(SourceConfig(path=f"{tmp_path}/part*"), 0))


def test_pattern_that_fits_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the pattern fits no data files"):
        list(read_rows(SourceConfig(path=f"{tmp_path}/*.jsonl"), 0))


def test_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pool.jsonl")
    with pytest.raises(DataError, match="is a pipe, a socket or a device"):
        list(read_rows(SourceConfig(path=str(tmp_path / "pool.jsonl")), 0))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/dev/zero", "is a pipe, a socket or a device"),
        ("~nobody-of-that-name/pool.jsonl", "there is no user of that name here"),
        ("/" + "x" * 300 + "/pool.jsonl", "can't be looked up: File name too long"),
        ("a\0b", "there is no such file or folder"),
    ],
)
def test_place_that_is_no_file_is_refused(path: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        list(read_rows(SourceConfig(path=path), 0))


def test_folder_in_place_of_a_file_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / "pool.jsonl").mkdir()
    with pytest.raises(DataError, match="the folder has no data files"):
        list(read_rows(SourceConfig(path=str(tmp_path / "pool.jsonl")), 0))


def test_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(DataError, match="there is no such file or folder"):
        list(read_rows(SourceConfig(path=str(tmp_path / "data" / "pool.jsonl")), 0))
