"""JSON text: numbers of any size come through, what JSON lacks is written as it can be, lines stay as they stand."""

from __future__ import annotations

import datetime
import json
import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradsift.data.jsontext import MAX_DEPTH, Number, json_text, parsed_json, without_constants
from gradsift.errors import DataError

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON_VALUES)
def test_plain_values_are_written_as_json_writes_them(value: Any) -> None:
    assert json_text(value) == json.dumps(value, ensure_ascii=False)


@given(JSON_VALUES)
def test_plain_values_are_read_as_json_reads_them(value: Any) -> None:
    assert parsed_json(json.dumps(value)) == json.loads(json.dumps(value))


@pytest.mark.parametrize("digits", ["9" * 5000, "-" + "1" * 700, "1e999", "-2.5E+400", "1" * 400 + ".5"])
def test_number_of_any_size_comes_back_by_its_digits(digits: str) -> None:
    value = parsed_json(f'{{"n": [{digits}]}}')
    assert value == {"n": [Number(digits)]}
    assert json_text(value) == f'{{"n": [{digits}]}}'


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (math.nan, "null"),
        ([math.inf, -math.inf], "[null, null]"),
        (Decimal("1.10"), "1.10"),
        (Decimal("12345678901234567890123456789.123"), "12345678901234567890123456789.123"),
        (datetime.date(2024, 2, 29), '"2024-02-29"'),
        (datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC), '"2024-02-29T12:30:00+00:00"'),
        (datetime.time(1, 2, 3), '"01:02:03"'),
        (b"\xff\x00", '"/wA="'),
        ({1: [("a", 2)]}, '{"1": [["a", 2]]}'),
        ("\ud800é", '"\\ud800\\u00e9"'),
    ],
)
def test_what_json_lacks_is_written_as_it_can_be(value: Any, written: str) -> None:
    assert json_text(value) == written
    json.loads(written.encode())


@pytest.mark.parametrize(
    ("line", "written"),
    [
        (b'{"a": NaN,  "b":[-Infinity , Infinity]}', b'{"a": null,  "b":[null , null]}'),
        (b'{"NaN": "Infinity \\" NaN", "b": 1.50}', b'{"NaN": "Infinity \\" NaN", "b": 1.50}'),
        (b'{"NaN \\\\": NaN}', b'{"NaN \\\\": null}'),
        (b'{"a": 1e999}', b'{"a": 1e999}'),
    ],
)
def test_constants_become_null_and_all_else_stays(line: bytes, written: bytes) -> None:
    assert without_constants(line) == written


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), '{"a":' * 1000])
def test_text_that_is_nested_too_deeply_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="nested too deeply"):
        parsed_json(text)


def test_brackets_inside_texts_and_beside_one_another_are_no_depth() -> None:
    value = ["[{" * 1000, *([] for _ in range(1000))]
    assert parsed_json(json.dumps(value)) == value
    assert parsed_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
