from __future__ import annotations

from pathlib import Path

import pytest

from gradsift.errors import DataError
from gradsift.tasks.prompt import Prompt, as_examples

PATH = Path("rows.jsonl")


def prompt(subtask: str, name: str | None = None) -> Prompt:
    return Prompt(subtask, "question", "prefill", " completion", name)


def test_unnamed_prompts_are_counted_inside_their_subtask() -> None:
    examples = as_examples([prompt("a"), prompt("b"), prompt("a", "mine"), prompt("a")], "target", PATH)
    assert [example.id for example in examples] == ["a/0", "b/0", "mine", "a/2"]
    assert [example.row for example in examples] == [0, 1, 2, 3]


def test_an_id_that_stands_twice_is_refused() -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl: two validation examples have the id 'x'"):
        as_examples([prompt("a", "x"), prompt("b", "x")], "target", PATH)


def test_no_prompt_is_refused() -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl: a target without examples"):
        as_examples([], "target", PATH)
