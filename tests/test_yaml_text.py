"""YAML text: plain values alone, each key once, and no text that takes for ever."""

from __future__ import annotations

from typing import Any

import pytest

from gradsift.errors import ConfigError
from gradsift.yaml_text import MAX_CHARACTERS, parsed_yaml

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(60))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 2e-5", {"a": 2e-5}),
        ("a: 2024-01-01", {"a": "2024-01-01"}),
        ("a: 2024-13-45", {"a": "2024-13-45"}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}", {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}}),
        ("a: !!float 3", {"a": 3.0}),
        ("", None),
        ("# nothing", None),
    ],
)
def test_plain_value_is_read(text: str, value: Any) -> None:
    assert parsed_yaml(text) == value


def test_alias_is_a_copy() -> None:
    value = parsed_yaml("a: &x {b: 1}\nc: *x")
    value["a"]["b"] = 2
    assert value["c"] == {"b": 1}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2", "line 4: the key 'c' stands twice"),
        ("{a: 1, a: 1}", "line 1: the key 'a' stands twice"),
        ("a: &a [*a]", "an alias stands inside what it stands for"),
        ("a: &a {b: *a}", "an alias stands inside what it stands for"),
        (BOMB, "more than 10,000 values begin here, aliases written out"),
        ("a: !!int x", "is not valid YAML"),
        ("a: !!int ''", "is not valid YAML"),
        ("a: !!timestamp x", "the tag 'tag:yaml.org,2002:timestamp' is not read"),
        ("a: !!python/object/apply:os.system [ls]", "the tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("a: !mine 1", "the tag '!mine' is not read"),
        ("a: !!binary x", "is not read"),
        ("a: " + "1" * 5000, "a number of 5,000 characters"),
        ("a: 0x" + "f" * 5000, "a number of 5,002 characters"),
        ("a: " + "1:" * 50_000 + "1", "a number of 100,001 characters"),
        ("- a\n" * 20_000, "more than 10,000 values"),
        ("? [a, b]\n: 1", "a key is no text"),
        ("[" * 5000, "nested too deeply"),
        ("a: [", "is not valid YAML"),
        ("a: b: c", "is not valid YAML"),
        ("a: 1\n---\nb: 2", "is not valid YAML"),
        ("a: \x00", "is not valid YAML"),
        ("a: *b", "is not valid YAML"),
        ("#" * (MAX_CHARACTERS + 1), "characters"),
    ],
)
def test_text_that_no_config_needs_is_refused_in_a_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed_yaml(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
