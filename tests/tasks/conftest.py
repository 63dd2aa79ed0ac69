"""What the tests of the tasks share: the authors' prompts, real target files, and a writer of small ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradsift.data.example import Example

SHARED = Path(__file__).resolve().parents[3] / "shared"

AuthorsPrompts = Callable[[str], list[tuple[str, str]]]
WriteJsonl = Callable[[list[dict[str, Any]]], Path]


def tulu_prompt(example: Example) -> tuple[str, str]:
    """Query and completion of the example in the Tulu format, as the authors' code words them."""
    user, assistant = example.messages
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    query = f"<|user|>\n{user['content'].strip()}\n<|assistant|>\n{example.prefill}"
    return query, assistant["content"]


@pytest.fixture
def targets() -> Path:
    """The folder of real target files."""
    if not SHARED.is_dir():
        pytest.skip("the shared folder of real data is not beside the repository")
    return SHARED / "data" / "targets"


@pytest.fixture
def authors_prompts(targets: Path) -> AuthorsPrompts:
    """A task's (query, completion) pairs from the authors' own code, in their order."""
    lines = (SHARED / "golden" / "target-prompts.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]

    def of_task(task: str) -> list[tuple[str, str]]:
        return [(row["query"], row["completion"]) for row in rows if row["task"] == task]

    return of_task


@pytest.fixture
def write_jsonl(tmp_path: Path) -> WriteJsonl:
    """Writes rows to a JSONL file and gives back its path."""

    def write(rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
