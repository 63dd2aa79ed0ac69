"""`Example`: the one record that everything upstream of the model is made of."""

from __future__ import annotations

from collections.abc import Iterable
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

    @property
    def text(self) -> str:
        """Its messages, one after the other."""
        return _joined(self.messages)

    @property
    def dialogue(self) -> str:
        """What is said in it: its text without the system prompts, which whole pools share."""
        return _joined(message for message in self.messages if message["role"] != "system")

    @property
    def answer(self) -> str:
        """What the assistant says, one turn after the other."""
        return _joined(message for message in self.messages if message["role"] == "assistant")


def _joined(messages: Iterable[Message]) -> str:
    return "\n".join(message["content"] for message in messages)
