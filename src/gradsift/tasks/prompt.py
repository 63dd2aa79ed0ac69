"""`Prompt`: one validation example as a task words it; the `Example`s that prompts become, and which are held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gradsift.data import Example
from gradsift.errors import DataError

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question and its answer, not yet numbered inside a target."""

    subtask: str
    question: str
    """The user turn."""
    prefill: str
    """What opens the assistant turn and is given."""
    completion: str
    """What is learned; begins with the space that parts it from the prefill, as in the authors' code."""
    id: str | None = None
    """The user's id where there is one."""


def parted(
    items: Sequence[Item], subtask_of: Callable[[Item], str], hold_out: int, path: Path
) -> tuple[list[Item], list[Item]]:
    """The items to select for, and the last `hold_out` of every subtask, which are not.

    `DataError`, naming `path`, where that leaves a subtask without any.
    """
    left = Counter(map(subtask_of, items))
    for subtask, count in left.items():
        if count <= hold_out:
            raise DataError(f"{subtask} has {count} examples: hold_out={hold_out} leaves none to select for", path)
    kept: list[Item] = []
    held: list[Item] = []
    for item in items:
        subtask = subtask_of(item)
        (kept if left[subtask] > hold_out else held).append(item)
        left[subtask] -= 1
    return kept, held


def as_examples(prompts: Iterable[Prompt], target: str, path: Path) -> list[Example]:
    """One example per prompt, in order; a prompt without an id is named `subtask/index within the subtask`.

    `DataError`, naming `path`, where there is no prompt or an id stands twice.
    """
    num_seen: Counter[str] = Counter()
    examples: dict[str, Example] = {}
    for row, prompt in enumerate(prompts):
        name = prompt.id or f"{prompt.subtask}/{num_seen[prompt.subtask]}"
        num_seen[prompt.subtask] += 1
        if name in examples:
            raise DataError(f"two validation examples have the id {name!r}; ids must differ", path)
        examples[name] = _example(prompt, name, target, row)
    if not examples:
        raise DataError("a target without examples; give at least one", path)
    return list(examples.values())


def _example(prompt: Prompt, name: str, target: str, row: int) -> Example:
    return Example(
        id=name,
        messages=[
            {"role": "user", "content": prompt.question},
            {"role": "assistant", "content": prompt.completion},
        ],
        source=target,
        row=row,
        subtask=prompt.subtask,
        prefill=prompt.prefill,
    )
