"""Sources: containers, ids, samples, errors with their place, and the lines that are written back."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from gradsift.data.source_settings import SourceConfig
from gradsift.data.sources import read_examples, selected_lines, source_fingerprint
from gradsift.errors import ConfigError, DataError

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data"

Rows = list[dict[str, Any]]


def rows_of(count: int) -> Rows:
    return [{"id": f"r{index}", "instruction": f"Ask {index}é", "output": f"Say\n{index}"} for index in range(count)]


def as_jsonl(rows: Rows) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def as_json(rows: Rows) -> bytes:
    return json.dumps(rows, indent=1).encode()


def as_json_object(rows: Rows) -> bytes:
    return json.dumps({"version": 1, "data": rows}).encode()


def as_table(rows: Rows, delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_tsv(rows: Rows) -> bytes:
    return as_table(rows, "\t")


def as_parquet(rows: Rows) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def zipped(write: Callable[[Rows], bytes]) -> Callable[[Rows], bytes]:
    return lambda rows: gzip.compress(write(rows))


CONTAINERS: dict[str, tuple[str, Callable[[Rows], bytes]]] = {
    "jsonl": ("pool.jsonl", as_jsonl),
    "ndjson": ("pool.ndjson", as_jsonl),
    "json": ("pool.json", as_json),
    "json object": ("pool.json", as_json_object),
    "csv": ("pool.csv", as_table),
    "tsv": ("pool.tsv", as_tsv),
    "parquet": ("pool.parquet", as_parquet),
    "jsonl.gz": ("pool.jsonl.gz", zipped(as_jsonl)),
    "json.gz": ("pool.json.gz", zipped(as_json)),
    "csv.gz": ("pool.csv.gz", zipped(as_table)),
    "tsv.gz": ("pool.tsv.gz", zipped(as_tsv)),
    "capitals": ("POOL.JSONL", as_jsonl),
}
each_container = pytest.mark.parametrize("container", CONTAINERS)


def write(folder: Path, container: str, rows: Rows) -> Path:
    name, to_bytes = CONTAINERS[container]
    path = folder / name
    path.write_bytes(to_bytes(rows))
    return path


def source_of(path: Path | str, **keys: Any) -> SourceConfig:
    return SourceConfig(path=str(path), **keys)


def ids(source: SourceConfig, seed: int = 0) -> list[str]:
    return [example.id for example in read_examples(source, seed)]


def refusal(source: SourceConfig) -> str:
    """What is said of a source that can't be read, be it for one row."""
    with pytest.raises(DataError) as caught:
        list(read_examples(source.model_copy(update={"on_error": "refuse"}), 0))
    return str(caught.value)


def written(tmp_path: Path, content: bytes, name: str = "pool.jsonl") -> SourceConfig:
    (tmp_path / name).write_bytes(content)
    return source_of(tmp_path / name)


# Containers


@each_container
def test_container_gives_every_row_in_order(tmp_path: Path, container: str) -> None:
    source = source_of(write(tmp_path, container, rows_of(5)))
    assert ids(source) == ["r0", "r1", "r2", "r3", "r4"]


@each_container
def test_container_gives_the_messages_of_a_row(tmp_path: Path, container: str) -> None:
    source = source_of(write(tmp_path, container, rows_of(2)))
    assert list(read_examples(source, 0))[1].messages == [
        {"role": "user", "content": "Ask 1é"},
        {"role": "assistant", "content": "Say\n1"},
    ]


@each_container
def test_examples_count_the_rows_of_their_source(tmp_path: Path, container: str) -> None:
    source = source_of(write(tmp_path, container, rows_of(3)), name="mine")
    assert [(example.source, example.row) for example in read_examples(source, 0)] == [
        ("mine", 0),
        ("mine", 1),
        ("mine", 2),
    ]


@each_container
def test_selected_lines_are_the_rows_as_json(tmp_path: Path, container: str) -> None:
    rows = rows_of(5)
    lines = selected_lines(source_of(write(tmp_path, container, rows)), [3, 1])
    assert {row: json.loads(line) for row, line in lines.items()} == {1: rows[1], 3: rows[3]}


@each_container
def test_empty_container_says_so(tmp_path: Path, container: str) -> None:
    name, to_bytes = CONTAINERS[container]
    empty = as_table(rows_of(1)).splitlines(keepends=True)[0] if name.lower().startswith("pool.csv") else b""
    if name.endswith((".json", ".json.gz")):
        empty = to_bytes([])
    if name.endswith(".parquet"):
        empty = as_parquet_without_rows()
    if name.endswith(".gz") and not name.endswith(".json.gz"):
        empty = gzip.compress(empty)
    (tmp_path / name).write_bytes(empty)
    assert f"{name}: is empty" in refusal(source_of(tmp_path / name))


def as_parquet_without_rows() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"instruction": pa.array([], pa.string())}), sink)
    return sink.getvalue()


def test_whitespace_lines_alone_are_an_empty_file(tmp_path: Path) -> None:
    assert "is empty" in refusal(written(tmp_path, b"\n  \r\n\t\n"))


def test_folder_is_read_by_name(tmp_path: Path) -> None:
    rows = rows_of(4)
    (tmp_path / "b.jsonl").write_bytes(as_jsonl(rows[2:]))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(as_jsonl(rows[:2])))
    (tmp_path / "README.md").write_text("not data")
    assert ids(source_of(tmp_path)) == ["r0", "r1", "r2", "r3"]


def test_rows_of_a_folder_are_counted_through(tmp_path: Path) -> None:
    rows = rows_of(4)
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(rows[:2]))
    (tmp_path / "b.jsonl").write_bytes(as_jsonl(rows[2:]))
    assert json.loads(selected_lines(source_of(tmp_path), [3])[3])["id"] == "r3"


def test_folder_of_two_kinds_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "jsonl", rows_of(1))
    write(tmp_path, "csv", rows_of(1))
    assert ".csv, .jsonl" in refusal(source_of(tmp_path))


def test_folder_without_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing")
    assert "no data files" in refusal(source_of(tmp_path))


def test_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    assert "known: .jsonl" in refusal(written(tmp_path, b"Hi", "pool.txt"))


@pytest.mark.parametrize("path", ["./nowhere", "nowhere.jsonl", "data/nowhere.parquet", "~/nowhere", "a/b/c", "a b"])
def test_absent_file_is_named_without_asking_the_hub(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("the hub was asked"))
    assert refusal(source_of(path)) == f"{path}: there is no such file or folder"


def test_byte_order_mark_is_not_part_of_the_first_row(tmp_path: Path) -> None:
    assert ids(written(tmp_path, b"\xef\xbb\xbf" + as_jsonl(rows_of(1)))) == ["r0"]


def test_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    assert ids(written(tmp_path, b"\xef\xbb\xbf" + as_table(rows_of(1)), "pool.csv")) == ["r0"]


def test_windows_line_ends_are_no_part_of_a_line(tmp_path: Path) -> None:
    lines = as_jsonl(rows_of(2)).split(b"\n")
    assert selected_lines(written(tmp_path, b"\r\n".join(lines)), [0, 1]) == {0: lines[0], 1: lines[1]}


def test_blank_lines_are_not_counted_as_rows(tmp_path: Path) -> None:
    first, second, _ = as_jsonl(rows_of(2)).split(b"\n")
    source = written(tmp_path, b"\n" + first + b"\n \r\n" + second)
    assert [example.row for example in read_examples(source, 0)] == [0, 1]


def test_selected_lines_count_rows_as_they_are_read(tmp_path: Path) -> None:
    first, second, _ = as_jsonl(rows_of(2)).split(b"\n")
    assert selected_lines(written(tmp_path, b"\n" + first + b"\n \r\n" + second), [1]) == {1: second}


def test_line_comes_byte_for_byte(tmp_path: Path) -> None:
    line = '{ "output":"\\u00e9 é" ,"instruction" : "Hi", "n": 1.50 }  '.encode()
    assert selected_lines(written(tmp_path, line + b"\n"), [0]) == {0: line}


def test_lines_between_the_selected_ones_are_not_parsed(tmp_path: Path) -> None:
    good = as_jsonl(rows_of(1001))
    source = written(tmp_path, good + b"{broken\n" + good.splitlines()[0])
    assert selected_lines(source, [1002])[1002] == good.splitlines()[0]


def test_row_of_a_table_keeps_its_columns_in_order(tmp_path: Path) -> None:
    rows = [{"output": "Ho", "extra": "é", "instruction": "Hi"}]
    line = selected_lines(source_of(write(tmp_path, "csv", rows)), [0])[0]
    assert line == '{"output": "Ho", "extra": "é", "instruction": "Hi"}'.encode()


def test_row_past_the_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no row 2"):
        selected_lines(source_of(write(tmp_path, "jsonl", rows_of(2))), [0, 2])


def test_line_break_in_a_cell_is_kept(tmp_path: Path) -> None:
    source = written(tmp_path, b'instruction,output\nHi,"one\n\n\ttwo"\n', "pool.csv")
    assert next(read_examples(source, 0)).messages[1]["content"] == "one\n\n\ttwo"


def test_long_cell_is_read(tmp_path: Path) -> None:
    source = written(tmp_path, b"instruction,output\nHi," + b"x" * 200_000 + b"\n", "pool.csv")
    assert len(next(read_examples(source, 0)).messages[1]["content"]) == 200_000


def test_nested_turns_of_parquet_are_read(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", "name": "x"}]
    (tmp_path / "pool.parquet").write_bytes(as_parquet([{"messages": turns}]))
    assert next(read_examples(source_of(tmp_path / "pool.parquet"), 0)).messages[1]["content"] == "Ho"


# Broken files


def test_broken_line_is_named_by_file_and_line(tmp_path: Path) -> None:
    lines = as_jsonl(rows_of(3)).splitlines(keepends=True)
    said = refusal(written(tmp_path, lines[0] + b"\n" + b'{"id": \n' + lines[2]))
    assert "pool.jsonl, line 3: is not valid JSON: Expecting value" in said


def test_broken_line_far_down_is_named_by_file_and_line(tmp_path: Path) -> None:
    assert "line 2001: is not valid JSON" in refusal(written(tmp_path, as_jsonl(rows_of(2000)) + b"{"))


@pytest.mark.parametrize(("name", "line"), [("pool.jsonl", 2), ("pool.csv", 3), ("pool.json", 3)])
def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path: Path, name: str, line: int) -> None:
    first = {"jsonl": as_jsonl(rows_of(1)), "csv": b"instruction,output\nHi,Ho\n", "json": b"[\n{},\n"}
    said = refusal(written(tmp_path, first[name[5:]] + b'{"instruction": "\xff"}\n', name))
    assert f"{name}, line {line}: is not valid UTF-8 (byte 0xff" in said


def test_line_that_is_no_object_is_refused(tmp_path: Path) -> None:
    assert "line 2: is a list, not an object" in refusal(written(tmp_path, as_jsonl(rows_of(1)) + b"[1]\n"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": [], "b": []}', "an object with 2 lists (a, b)"),
        (b'{"a": 1}', "an object with 0 lists (none)"),
        (b"3", "neither a list of rows"),
        (b"[1]", "row 0: is a int, not an object"),
        (b'[\n{"a": }]', "line 2: is not valid JSON"),
        (
            b'{"a": 1}\n{"a": 2}',
            "line 2: is not valid JSON: Extra data; a file with a JSON object a line is named .jsonl",
        ),
    ],
)
def test_json_document_of_another_shape_is_described(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refusal(written(tmp_path, content, "pool.json"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"instruction,output\nHi\n", "line 2: has 1 cells for 2 columns (instruction, output)"),
        (b"instruction,output\nHi,Ho,Hu\n", "line 2: has 3 cells"),
        (b"output,output\nHi,Ho\n", "line 1: two columns have the same name"),
        (b'instruction,output\nHi,"Ho', "line 2: is no table"),
    ],
)
def test_table_that_does_not_add_up_is_described(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refusal(written(tmp_path, content, "pool.csv"))


@pytest.mark.parametrize("content", [b"plain text", gzip.compress(b"x" * 1000)[:-12]])
def test_damaged_gzip_file_is_described(tmp_path: Path, content: bytes) -> None:
    assert "pool.jsonl.gz: is not a whole gzip file" in refusal(written(tmp_path, content, "pool.jsonl.gz"))


def test_damaged_parquet_file_is_described(tmp_path: Path) -> None:
    assert "is not a parquet file" in refusal(written(tmp_path, b"PAR1 nothing", "pool.parquet"))


def test_row_of_the_wrong_type_is_named_by_line(tmp_path: Path) -> None:
    said = refusal(written(tmp_path, as_jsonl([*rows_of(1), {"instruction": "Hi", "output": 3}])))
    assert said.endswith("pool.jsonl, line 2: output is a number, not text")


def test_row_of_the_wrong_type_is_named_by_row_where_there_are_no_lines(tmp_path: Path) -> None:
    said = refusal(source_of(write(tmp_path, "json", [*rows_of(1), {"instruction": "Hi", "output": 3}])))
    assert said.endswith("pool.json, row 1: output is a number, not text")


# Columns and formats


def test_unrecognised_columns_are_listed(tmp_path: Path) -> None:
    said = refusal(source_of(write(tmp_path, "jsonl", [{"text": "Hi", "label": 1}])))
    assert "pool.jsonl: no format fits; the columns there are: text, label" in said


def test_column_whose_name_has_a_line_end_is_listed_in_one_line(tmp_path: Path) -> None:
    said = refusal(source_of(write(tmp_path, "jsonl", [{"a\r\nb": "Hi", "c": 1}])))
    assert "the columns there are: a⏎b, c" in said


def test_named_format_without_its_column_lists_those_there(tmp_path: Path) -> None:
    said = refusal(source_of(write(tmp_path, "jsonl", rows_of(1)), format="flan"))
    assert "line 1: no column 'inputs'; the columns there are: id, instruction, output" in said


def test_mapped_column_that_is_absent_is_named_with_those_there(tmp_path: Path) -> None:
    said = refusal(source_of(write(tmp_path, "jsonl", rows_of(1)), columns={"input": "context"}))
    assert "no column 'context' for input; the columns there are: id, instruction, output" in said


def test_mapped_column_may_be_absent_from_some_rows(tmp_path: Path) -> None:
    rows = [*rows_of(2), {"id": "x", "instruction": "Hi", "output": "Ho", "context": "there"}]
    source = source_of(write(tmp_path, "jsonl", rows), columns={"input": "context"})
    assert list(read_examples(source, 0))[2].messages[0]["content"] == "Hi\nthere"


def test_required_column_absent_from_one_row_is_named_by_line(tmp_path: Path) -> None:
    rows = [*rows_of(1), {"instruction": "Hi"}]
    assert "line 2: no column 'output'" in refusal(source_of(write(tmp_path, "jsonl", rows)))


def test_format_is_recognised_through_the_columns_given(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"question": "Hi", "reply": "Ho"}])
    source = source_of(path, columns={"instruction": "question", "output": "reply"})
    assert next(read_examples(source, 0)).messages[1]["content"] == "Ho"


def test_subtask_column_is_kept_with_the_example(tmp_path: Path) -> None:
    rows = [row | {"kind": 7} for row in rows_of(1)]
    source = source_of(write(tmp_path, "jsonl", rows), columns={"subtask": "kind"})
    assert next(read_examples(source, 0)).subtask == "7"


def test_row_without_a_subtask_is_refused(tmp_path: Path) -> None:
    rows = [rows_of(2)[0] | {"kind": "a"}, rows_of(2)[1]]
    source = source_of(write(tmp_path, "jsonl", rows), columns={"subtask": "kind"})
    assert "line 2: has no subtask: no value in column 'kind'" in refusal(source)


def test_field_of_another_format_is_refused(tmp_path: Path) -> None:
    source = source_of(write(tmp_path, "jsonl", rows_of(1)), format="alpaca", columns={"context": "id"})
    with pytest.raises(ConfigError, match="has no field 'context'"):
        list(read_examples(source, 0))


def test_language_of_rows_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="language"):
        list(read_examples(source_of(write(tmp_path, "jsonl", rows_of(1)), language="en"), 0))


# Ids


def test_id_column_may_be_named(tmp_path: Path) -> None:
    source = source_of(write(tmp_path, "jsonl", rows_of(2)), columns={"id": "instruction"})
    assert ids(source) == ["Ask 0é", "Ask 1é"]


def test_number_as_id_is_written_out(tmp_path: Path) -> None:
    assert ids(source_of(write(tmp_path, "jsonl", [row | {"id": 7} for row in rows_of(1)]))) == ["7"]


@pytest.mark.parametrize("given", [{}, {"id": None}, {"id": ""}])
def test_row_without_an_id_gets_one_of_position_and_content(tmp_path: Path, given: dict[str, None]) -> None:
    row = {"instruction": "Hi", "output": "Ho", **given}
    content = json.dumps(row, sort_keys=True).encode()
    made = f"0000000-{hashlib.sha256(content).hexdigest()[:12]}"
    assert ids(source_of(write(tmp_path, "jsonl", [row]))) == [made]


def test_equal_rows_without_ids_stay_apart(tmp_path: Path) -> None:
    row = {"instruction": "Hi", "output": "Ho"}
    assert len(set(ids(source_of(write(tmp_path, "jsonl", [row, row]))))) == 2


def test_id_that_stands_twice_is_named_with_both_lines(tmp_path: Path) -> None:
    rows = rows_of(4)
    rows[3]["id"] = "r1"
    path = write(tmp_path, "jsonl", rows)
    assert refusal(source_of(path)) == f"the id 'r1' stands twice: {path}, line 2 and {path}, line 4"


def test_id_that_stands_twice_is_named_with_both_rows_where_there_are_no_lines(tmp_path: Path) -> None:
    rows = rows_of(4)
    rows[3]["id"] = "r1"
    path = write(tmp_path, "parquet", rows)
    assert f"{path}, row 1 and {path}, row 3" in refusal(source_of(path))


# Limit and sample


def test_limit_takes_the_first_rows(tmp_path: Path) -> None:
    assert ids(source_of(write(tmp_path, "jsonl", rows_of(9)), limit=3)) == ["r0", "r1", "r2"]


@each_container
def test_sample_takes_that_many_rows(tmp_path: Path, container: str) -> None:
    assert len(ids(source_of(write(tmp_path, container, rows_of(20)), sample=5))) == 5


def test_sample_keeps_the_order_of_the_file(tmp_path: Path) -> None:
    source = source_of(write(tmp_path, "jsonl", rows_of(50)), sample=20)
    rows = [example.row for example in read_examples(source, 0)]
    assert rows == sorted(rows)


def test_sample_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    source = source_of(write(tmp_path, "jsonl", rows_of(50)), sample=20)
    assert ids(source, 3) == ids(source, 3)


def test_sample_is_another_for_another_seed(tmp_path: Path) -> None:
    source = source_of(write(tmp_path, "jsonl", rows_of(50)), sample=20)
    assert ids(source, 3) != ids(source, 4)


def test_sample_is_the_same_in_every_container(tmp_path: Path) -> None:
    drawn = {tuple(ids(source_of(write(tmp_path, name, rows_of(50)), sample=9))) for name in CONTAINERS}
    assert len(drawn) == 1


def test_sample_of_more_rows_than_there_are_takes_all(tmp_path: Path) -> None:
    assert len(ids(source_of(write(tmp_path, "jsonl", rows_of(4)), sample=5))) == 4


def test_sampled_example_leads_back_to_its_line(tmp_path: Path) -> None:
    source = source_of(write(tmp_path, "jsonl", rows_of(50)), sample=5)
    rows = {example.row: example.id for example in read_examples(source, 0)}
    lines = selected_lines(source, list(rows))
    assert {row: json.loads(line)["id"] for row, line in lines.items()} == rows


# Message trees


def message(name: str, parent: str | None, language: str = "en", **flags: object) -> dict[str, Any]:
    role = "prompter" if name[0] == "q" else "assistant"
    return {"message_id": name, "parent_id": parent, "text": name, "role": role, "lang": language, **flags}


def tree(root: dict[str, Any], *replies: dict[str, Any]) -> dict[str, Any]:
    return {"message_tree_id": root["message_id"], "prompt": {**root, "replies": list(replies)}}


MESSAGES = [
    message("q1", None),
    message("a1", "q1"),
    message("a2", "q1", "de"),
    message("q2", None),
    message("a3", "q2"),
    message("a4", "q2", deleted=True),
]
TREES = [tree(*MESSAGES[:3]), tree(*MESSAGES[3:])]
each_oasst_layout = pytest.mark.parametrize("rows", [MESSAGES, TREES], ids=["messages", "trees"])


@each_oasst_layout
def test_trees_give_an_example_a_path(tmp_path: Path, rows: Rows) -> None:
    assert ids(source_of(write(tmp_path, "jsonl", rows))) == ["a1", "a2", "a3"]


@each_oasst_layout
def test_trees_give_the_paths_in_one_language(tmp_path: Path, rows: Rows) -> None:
    assert ids(source_of(write(tmp_path, "jsonl", rows), language="en")) == ["a1", "a3"]


@each_oasst_layout
def test_path_is_written_back_as_messages(tmp_path: Path, rows: Rows) -> None:
    line = selected_lines(source_of(write(tmp_path, "jsonl", rows), name="oa"), [2])[2]
    turns = [{"role": "user", "content": "q2"}, {"role": "assistant", "content": "a3"}]
    assert json.loads(line) == {"id": "a3", "source": "oa", "messages": turns}


@each_oasst_layout
def test_limit_counts_paths(tmp_path: Path, rows: Rows) -> None:
    assert ids(source_of(write(tmp_path, "jsonl", rows), limit=2)) == ["a1", "a2"]


@each_oasst_layout
def test_sample_counts_paths(tmp_path: Path, rows: Rows) -> None:
    assert len(ids(source_of(write(tmp_path, "jsonl", rows), sample=2))) == 2


@each_oasst_layout
def test_trees_without_a_path_left_say_so(tmp_path: Path, rows: Rows) -> None:
    assert "gives no conversation" in refusal(source_of(write(tmp_path, "jsonl", rows), language="fi"))


@each_oasst_layout
def test_broken_message_is_named_by_line(tmp_path: Path, rows: Rows) -> None:
    text = as_jsonl(rows).replace(b'"a3"', b"null")
    line = 5 if rows is MESSAGES else 2
    assert f"line {line}: text is null" in refusal(written(tmp_path, text))


def test_answer_that_stands_in_two_trees_is_refused(tmp_path: Path) -> None:
    assert "'a1' stands twice" in refusal(source_of(write(tmp_path, "jsonl", [TREES[0], TREES[0]])))


def test_message_that_stands_twice_in_a_table_is_refused(tmp_path: Path) -> None:
    assert "'a1' stands twice" in refusal(source_of(write(tmp_path, "jsonl", [*MESSAGES, MESSAGES[1]])))


# The `datasets` library


def test_saved_table_is_read(tmp_path: Path) -> None:
    datasets.Dataset.from_list(rows_of(3)).save_to_disk(tmp_path / "saved")
    assert ids(source_of(tmp_path / "saved")) == ["r0", "r1", "r2"]


@pytest.fixture
def saved_splits(tmp_path: Path) -> Path:
    splits = {
        "train": datasets.Dataset.from_list(rows_of(3)),
        "dev": datasets.Dataset.from_list(rows_of(5)[3:]),
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize(("split", "found"), [(None, ["r0", "r1", "r2"]), ("dev", ["r3", "r4"])])
def test_split_of_a_saved_table_is_read(saved_splits: Path, split: str | None, found: list[str]) -> None:
    assert ids(source_of(saved_splits, split=split)) == found


def test_unknown_split_lists_those_there(saved_splits: Path) -> None:
    assert "has no split 'test'; the splits there are: train, dev" in refusal(source_of(saved_splits, split="test"))


def test_split_of_a_table_without_splits_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_list(rows_of(3)).save_to_disk(tmp_path / "saved")
    assert "has no split 'test'" in refusal(source_of(tmp_path / "saved", split="test"))


def test_rows_of_a_saved_table_are_written_back(tmp_path: Path) -> None:
    datasets.Dataset.from_list(rows_of(3)).save_to_disk(tmp_path / "saved")
    assert json.loads(selected_lines(source_of(tmp_path / "saved"), [2])[2]) == rows_of(3)[2]


def test_fingerprint_of_a_saved_table_follows_its_split(saved_splits: Path) -> None:
    assert source_fingerprint(source_of(saved_splits)) != source_fingerprint(source_of(saved_splits, split="dev"))


class Hub:
    """Stands in for the hub: remembers what it was asked, and gives five rows."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def load_dataset(self, *arguments: Any, **options: Any) -> datasets.Dataset:
        self.calls.append((arguments, options))
        return datasets.Dataset.from_list(rows_of(5))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub()
    monkeypatch.setattr(datasets, "load_dataset", stand_in.load_dataset)
    return stand_in


@pytest.mark.parametrize("name", ["owner/some-pool", "somepool", "owner/pool-v1.5"])
def test_name_that_is_no_file_is_looked_up_on_the_hub(hub: Hub, name: str) -> None:
    assert ids(source_of(name)) == ["r0", "r1", "r2", "r3", "r4"]


def test_hub_is_asked_for_the_train_split(hub: Hub) -> None:
    ids(source_of("owner/pool"))
    assert hub.calls == [(("owner/pool", None), {"split": "train"})]


def test_hub_is_asked_for_the_subset_and_split_given(hub: Hub) -> None:
    ids(source_of("owner/pool", subset="en", split="dev"))
    assert hub.calls == [(("owner/pool", "en"), {"split": "dev"})]


def test_sample_of_a_hub_dataset_is_drawn(hub: Hub) -> None:
    assert len(ids(source_of("owner/pool", sample=2))) == 2


def test_fingerprint_of_a_hub_dataset_is_its_own(hub: Hub) -> None:
    table = datasets.Dataset.from_list(rows_of(5))
    expected = hashlib.sha256(table._fingerprint.encode()).hexdigest()
    assert source_fingerprint(source_of("owner/pool")) == expected


def test_hub_failure_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    said = refusal(source_of("owner/pool"))
    assert said == (
        "owner/pool: is no file or folder here, and can't be loaded from the hub (ConnectionError: no route to host)"
    )


@pytest.mark.parametrize(("keys", "said"), [({"split": "dev"}, "no splits"), ({"subset": "en"}, "no subsets")])
def test_file_has_neither_splits_nor_subsets(tmp_path: Path, keys: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        list(read_examples(source_of(write(tmp_path, "jsonl", rows_of(1)), **keys), 0))


# Fingerprints


def test_fingerprint_of_a_file_is_its_digest(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", rows_of(3))
    assert source_fingerprint(source_of(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_fingerprint_does_not_depend_on_the_place(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jsonl").write_bytes(as_jsonl(rows_of(2)))
        (tmp_path / folder / "y.jsonl").write_bytes(as_jsonl(rows_of(3)))
    assert source_fingerprint(source_of(tmp_path / "a")) == source_fingerprint(source_of(tmp_path / "b"))


def test_fingerprint_depends_on_the_order_of_files(tmp_path: Path) -> None:
    for folder, names in (("a", "xy"), ("b", "yx")):
        (tmp_path / folder).mkdir()
        for count, name in enumerate(names):
            (tmp_path / folder / f"{name}.jsonl").write_bytes(as_jsonl(rows_of(count + 1)))
    assert source_fingerprint(source_of(tmp_path / "a")) != source_fingerprint(source_of(tmp_path / "b"))


# LLaMA-Factory


def llamafactory(folder: Path, entry: dict[str, Any], rows: Rows | None = None, **keys: Any) -> SourceConfig:
    (folder / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    if rows is not None:
        (folder / "mine.json").write_bytes(as_json(rows))
    return SourceConfig(llamafactory={"dataset_dir": str(folder), "dataset": "mine"}, **keys)  # type: ignore[arg-type]


def first_messages(source: SourceConfig) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in next(read_examples(source, 0)).messages]


def test_llamafactory_entry_with_tools_gives_calls_answers_and_definitions(tmp_path: Path) -> None:
    function = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}}
    turns = [
        {"who": "asker", "text": "Warm?"},
        {"who": "calling", "text": json.dumps({"name": "weather", "arguments": {"city": "Bern"}})},
        {"who": "answering", "text": "21"},
        {"who": "model", "text": "It is."},
    ]
    rows = [{"dialogue": turns, "functions": json.dumps([function])}]
    tags = {"role_tag": "who", "content_tag": "text", "user_tag": "asker", "assistant_tag": "model"}
    tags |= {"function_tag": "calling", "observation_tag": "answering"}
    columns = {"messages": "dialogue", "tools": "functions"}
    entry = {"file_name": "mine.json", "formatting": "sharegpt", "columns": columns, "tags": tags}
    (example,) = read_examples(llamafactory(tmp_path, entry, rows), 0)
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
    assert example.messages == [
        {"role": "user", "content": "Warm?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "21"},
        {"role": "assistant", "content": "It is."},
    ]
    assert example.tools == [{"type": "function", "function": function}]


def test_alpaca_entry_reads_instruction_input_and_output(tmp_path: Path) -> None:
    rows = [{"instruction": "Hi", "input": "there", "output": "Ho", "system": "not named"}]
    source = llamafactory(tmp_path, {"file_name": "mine.json"}, rows)
    assert first_messages(source) == [("user", "Hi\nthere"), ("assistant", "Ho")]


def test_alpaca_entry_with_columns_reads_those_it_names(tmp_path: Path) -> None:
    rows = [{"q": "Hi", "input": "not named", "a": "Ho", "s": "Be kind.", "h": [["Who?", "Me."]]}]
    columns = {"prompt": "q", "response": "a", "system": "s", "history": "h"}
    source = llamafactory(tmp_path, {"file_name": "mine.json", "columns": columns}, rows)
    assert first_messages(source) == [
        ("system", "Be kind."),
        ("user", "Who?"),
        ("assistant", "Me."),
        ("user", "Hi"),
        ("assistant", "Ho"),
    ]


def test_sharegpt_entry_reads_conversations(tmp_path: Path) -> None:
    rows = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}]
    source = llamafactory(tmp_path, {"file_name": "mine.json", "formatting": "sharegpt"}, rows)
    assert first_messages(source) == [("user", "Hi"), ("assistant", "Ho")]


def test_sharegpt_entry_reads_its_own_tags(tmp_path: Path) -> None:
    rows = [{"talk": [{"who": "U", "says": "Hi"}, {"who": "M", "says": "Ho"}]}]
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "U", "assistant_tag": "M"}
    entry = {
        "file_name": "mine.json",
        "formatting": "sharegpt",
        "columns": {"messages": "talk"},
        "tags": tags,
    }
    assert first_messages(llamafactory(tmp_path, entry, rows)) == [("user", "Hi"), ("assistant", "Ho")]


def test_entry_may_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "a.json").write_bytes(as_json(rows_of(2)))
    assert ids(llamafactory(tmp_path, {"file_name": "many"})) == ["r0", "r1"]


def test_entry_draws_the_samples_it_asks_for(tmp_path: Path) -> None:
    assert len(ids(llamafactory(tmp_path, {"file_name": "mine.json", "num_samples": 3}, rows_of(9)))) == 3


def test_entry_on_the_hub_is_asked_for_with_its_settings(tmp_path: Path, hub: Hub) -> None:
    entry = {"hf_hub_url": "owner/pool", "subset": "en", "split": "dev", "folder": "v1", "revision": "abc"}
    ids(llamafactory(tmp_path, entry))
    assert hub.calls == [(("owner/pool", "en"), {"split": "dev", "data_dir": "v1", "revision": "abc"})]


def test_local_entry_without_its_file_does_not_ask_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "gone"}}))
    source = SourceConfig.model_validate({"llamafactory": {"dataset_dir": ".", "dataset": "mine"}})
    assert refusal(source) == "gone: there is no such file or folder"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"file_name": "mine.json", "ranking": True}, "preferences"),
        ({"ms_hub_url": "owner/pool"}, "ms_hub_url"),
        ({"script_url": "mine"}, "script_url"),
        ({"file_name": "mine.json", "formatting": "parrot"}, "unknown formatting 'parrot'"),
        ({"file_name": "mine.json", "columns": {"images": "pictures"}}, "need images"),
        ({"file_name": "mine.json", "columns": {"kto_tag": "liked"}}, "need kto_tag"),
    ],
)
def test_entry_that_cannot_be_read_says_why(tmp_path: Path, entry: dict[str, Any], said: str) -> None:
    assert said in refusal(llamafactory(tmp_path, entry, rows_of(1)))


def test_absent_entry_names_the_nearest(tmp_path: Path) -> None:
    llamafactory(tmp_path, {"file_name": "mine.json"})
    source = SourceConfig.model_validate({"llamafactory": {"dataset_dir": str(tmp_path), "dataset": "mime"}})
    assert "has no dataset 'mime'; did you mean 'mine'?" in refusal(source)


def test_absent_dataset_info_is_named(tmp_path: Path) -> None:
    source = SourceConfig.model_validate({"llamafactory": {"dataset_dir": str(tmp_path), "dataset": "mine"}})
    assert "dataset_info.json: there is no such file" in refusal(source)


def test_fingerprint_depends_on_the_entry(tmp_path: Path) -> None:
    rows = rows_of(2)
    before = source_fingerprint(llamafactory(tmp_path, {"file_name": "mine.json"}, rows))
    columns = {"prompt": "instruction", "response": "output"}
    after = source_fingerprint(llamafactory(tmp_path, {"file_name": "mine.json", "columns": columns}, rows))
    assert before != after


# The config


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"path": "data/pool.jsonl.gz"}, "pool"),
        ({"path": "data/my pool.v2.csv"}, "my_pool.v2"),
        ({"path": "owner/some-pool"}, "some-pool"),
        ({"path": "folder/"}, "folder"),
        ({"preset": "dolly"}, "dolly"),
        ({"preset": "dolly", "path": "copy.jsonl"}, "dolly"),
        ({"llamafactory": {"dataset_dir": "data", "dataset": "mine"}}, "mine"),
        ({"path": "pool.jsonl", "name": "given"}, "given"),
    ],
)
def test_name_is_the_one_given_or_that_of_the_place(keys: dict[str, Any], name: str) -> None:
    assert SourceConfig.model_validate(keys).name == name


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "give one of path"),
        ({"path": ""}, "give one of path"),
        ({"path": "a.jsonl", "llamafactory": {"dataset_dir": "d", "dataset": "m"}}, "llamafactory and path"),
        ({"preset": "cot", "llamafactory": {"dataset_dir": "d", "dataset": "m"}}, "llamafactory and preset"),
        ({"path": "a.jsonl", "limit": 3, "sample": 3}, "limit and sample"),
        ({"path": "a.jsonl", "limit": 0}, "greater than or equal to 1"),
        ({"path": "a.jsonl", "format": "alpacca"}, "did you mean 'alpaca'"),
        ({"path": "a.jsonl", "columns": {"outptu": "x"}}, "did you mean 'output'"),
        ({"path": "a.jsonl", "colour": "red"}, "Extra inputs"),
        ({"preset": "flan"}, "flan_v2"),
    ],
)
def test_config_that_contradicts_itself_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SourceConfig.model_validate(keys)


def test_config_survives_a_round_trip() -> None:
    source = SourceConfig.model_validate({"path": "pool.jsonl", "columns": {"id": "key"}, "sample": 3})
    assert SourceConfig.model_validate(source.model_dump(mode="json")) == source


def test_import_loads_no_heavy_library() -> None:
    heavy = "{'datasets', 'pyarrow', 'numpy', 'torch', 'transformers'}"
    program = f"import sys, gradsift.data.sources; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Real data


def test_shared_pool_reads_whole_with_its_ids() -> None:
    path = SAMPLES / "pool.jsonl"
    if not path.is_file():
        pytest.skip(f"{path.name}: the sample data is not beside this checkout")
    with path.open(encoding="utf-8") as file:
        expected = [json.loads(line)["id"] for line in file]
    assert len(expected) == 20_345
    assert ids(source_of(path)) == expected
