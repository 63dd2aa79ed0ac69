"""`Prompt`: one validation example as a task words it, and the `Example`s that a target's prompts become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gradsift.data import Example
from gradsift.errors import DataError


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
