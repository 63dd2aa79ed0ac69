"""Rows and files broken in any way: read, set aside or refused in one line, and all readers agree on what is there."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import cases, survives, time_limit
from hypothesis import given
from hypothesis import strategies as st
from runs import tiny_run

from gradsift.data import Example, SourceConfig, read_rows, selected_lines
from gradsift.data.formats import FORMATS
from gradsift.data.sources import selected_examples
from gradsift.errors import UserError

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
GOOD_ROWS: dict[str, dict[str, Any]] = {
    "messages": {"messages": TURNS, "system": "Be kind."},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
    "prompt_completion": {"prompt": "Hi", "completion": "Ho"},
    "alpaca": {"instruction": "Hi", "input": "", "output": "Ho", "history": [["a", "b"]]},
    "dolly": {"instruction": "Hi", "response": "Ho", "context": "There."},
    "flan": {"inputs": "Hi", "targets": "Ho"},
    "cot": {"question": "Hi", "answer": "Ho", "rationale": "So."},
    "oasst_trees": {
        "message_tree_id": "t",
        "prompt": {
            "message_id": "q",
            "role": "prompter",
            "text": "Hi",
            "replies": [{"message_id": "a", "role": "assistant", "text": "Ho", "replies": []}],
        },
    },
    "oasst_messages": {"message_id": "q", "parent_id": None, "role": "prompter", "text": "Hi", "lang": "en"},
}
TASK_ROWS: dict[str, dict[str, Any]] = {
    "mmlu": {"subtask": "law", "question": "Hi?", "choices": ["a", "b", "c", "d"], "answer": "A", "split": "val"},
    "tydiqa": {"subtask": "english", "question": "Hi?", "context": "There.", "answers": [{"text": "a", "start": 0}]},
    "bbh": {"subtask": "sums", "description": "Add.", "prompt": "1+1", "cot": "It is 2.", "answer": "2"},
}
WORDS = ("", "user", "assistant", "system", "tool", "a", "Hi", "\ud800", "\0", "é", "x" * 300)
LEAVES = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 10**30, 10**700, 1.5, float("nan"), float("inf")])
    | st.text(max_size=5)
    | st.sampled_from(WORDS)
)
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=6,
)


def changed(draw: st.DrawFn, value: Any) -> Any:
    """The value with something in it taken away, doubled, or made another."""
    deeper = isinstance(value, dict | list) and len(value) > 0 and draw(st.integers(0, 3))
    if not deeper:
        return draw(JUNK)
    copy = dict(value) if isinstance(value, dict) else list(value)
    key = draw(st.sampled_from(sorted(copy) if isinstance(copy, dict) else range(len(copy))))
    if draw(st.integers(0, 4)) == 0:
        del copy[key]
    else:
        copy[key] = changed(draw, copy[key])
    return copy


@st.composite
def some_rows(draw: st.DrawFn) -> list[Any]:
    """Rows of a format, some of them changed."""
    return several(draw, GOOD_ROWS[draw(st.sampled_from(sorted(GOOD_ROWS)))])


def several(draw: st.DrawFn, good: dict[str, Any]) -> list[Any]:
    rows: list[Any] = []
    for index in range(draw(st.integers(1, 6))):
        row = {"id": f"r{index}", **good} if draw(st.booleans()) else dict(good)
        rows.append(changed(draw, row) if draw(st.integers(0, 2)) == 0 else row)
    return rows


@st.composite
def task_rows(draw: st.DrawFn) -> tuple[str, list[Any]]:
    """A task and rows for it, some of them changed."""
    task = draw(st.sampled_from(sorted(TASK_ROWS)))
    return task, several(draw, TASK_ROWS[task])


@st.composite
def damaged(draw: st.DrawFn, contents: dict[str, bytes]) -> tuple[str, bytes]:
    """A file of some kind with bytes cut, put in or changed."""
    name = draw(st.sampled_from(sorted(contents)))
    content = contents[name]
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(content)))
        stop = start + draw(st.sampled_from([0, 1, 4, 1 << 20]))
        put = draw(st.binary(max_size=4) | st.sampled_from([b"\xff", b'"', b"\n", b"[" * 300]))
        content = content[:start] + put + content[stop:]
    return name, content


def as_lines(rows: list[Any]) -> bytes:
    return b"\n".join(json.dumps(row).encode() for row in rows)


def as_table(delimiter: str) -> bytes:
    text = io.StringIO()
    rows = [["id", "instruction", "output"], *([str(index), "a", "b"] for index in range(5))]
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue().encode()


def as_parquet() -> bytes:
    sink = io.BytesIO()
    meta = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}"] * 5))
    columns = {"id": [str(index) for index in range(5)], "messages": [TURNS] * 5, "meta": meta}
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


ALPACA = [{"id": str(index), "instruction": "a", "output": "b"} for index in range(5)]
CONTENTS = {
    "pool.jsonl": as_lines(ALPACA),
    "pool.json": json.dumps({"data": ALPACA}).encode(),
    "pool.csv": as_table(","),
    "pool.tsv": as_table("\t"),
    "pool.parquet": as_parquet(),
    "pool.jsonl.gz": gzip.compress(as_lines(ALPACA), mtime=0),
}


def read_alike(source: SourceConfig) -> None:
    """Reads the source as every stage does, and compares; fails where anything but an error of the user's comes up."""
    with time_limit():
        try:
            rows = list(read_rows(source, 0))
        except UserError as error:
            assert "\n" not in str(error)
            return
        examples = [row for row in rows if isinstance(row, Example)]
        positions = [example.row for example in examples]
        assert [row.row for row in rows] == list(range(len(rows)))
        assert selected_examples(source, positions) == dict(zip(positions, examples, strict=True))
        for line in selected_lines(source, positions).values():
            json.loads(line.decode(), parse_int=str, parse_constant=pytest.fail)
            assert b"\n" not in line
        for row in rows:
            row.id.encode()


@cases(250)
@given(rows=some_rows(), form=st.none() | st.sampled_from(sorted(FORMATS)), name=st.sampled_from(["p.jsonl", "p.json"]))
def test_rows_of_any_shape(tmp_path: Path, rows: list[Any], form: str | None, name: str) -> None:
    content = as_lines(rows) if name.endswith("l") else json.dumps(rows).encode()
    (tmp_path / name).write_bytes(content)
    read_alike(SourceConfig(path=str(tmp_path / name), format=form))


@cases(250)
@given(file=damaged(CONTENTS))
def test_files_with_damaged_bytes(tmp_path: Path, file: tuple[str, bytes]) -> None:
    name, content = file
    (tmp_path / name).write_bytes(content)
    read_alike(SourceConfig(path=str(tmp_path / name)))


@cases(120)
@given(rows=some_rows())
def test_any_rows_as_a_parquet_column_of_json(tmp_path: Path, rows: list[Any]) -> None:
    texts = [json.dumps(row.get("messages", row) if isinstance(row, dict) else row) for row in rows]
    column = pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts))
    pq.write_table(pa.table({"messages": column}), tmp_path / "pool.parquet")
    read_alike(SourceConfig(path=str(tmp_path / "pool.parquet")))


@pytest.fixture
def encode(tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., int]:
    """Encodes a pool and a target through the command line, in a run folder of its own."""
    config, runs = tiny_run(tmp_path, tiny_model_folder), iter(range(10**9))

    def run(*overrides: str) -> int:
        return survives(capsys, "encode", config, f"run_dir={tmp_path}/run-{next(runs)}", *overrides)

    return run


@cases(80)
@given(rows=some_rows())
def test_rows_of_any_shape_through_the_command_line(
    tmp_path: Path, encode: Callable[..., int], rows: list[Any]
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(as_lines(rows))
    encode(f"pool.0.path={tmp_path}/rows.jsonl")
    encode(f"targets=[{{name: mine, path: {tmp_path}/rows.jsonl}}]")


@cases(80)
@given(rows=task_rows())
def test_rows_of_any_shape_for_a_task(tmp_path: Path, encode: Callable[..., int], rows: tuple[str, list[Any]]) -> None:
    task, lines = rows
    (tmp_path / "rows.jsonl").write_bytes(as_lines(lines))
    encode(f"targets=[{{name: mine, task: {task}, path: {tmp_path}/rows.jsonl}}]")
