"""`Example`: the one record that everything upstream of the model is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation with the identity that it keeps from the user's file to the selected file."""

    id: str
    """The user's id where there is one; unique within `source`."""
    messages: list[Message]
    source: str
    """Name of the pool source or target that it comes from."""
    row: int = 0
    """Position among the rows of its source, from 0."""
    subtask: str | None = None
    """Subtask of a target example; None in a pool."""
    prefill: str | None = None
    """Text that opens the last assistant turn and is given, not learned. Where it is set, the last message holds
    what follows it, and no end mark is supervised: the form of the authors' target prompts ("A:", " yes")."""
