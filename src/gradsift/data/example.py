"""`Example`: the one record that everything upstream of the model is made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict


class Function(TypedDict):
    """The tool that is called, and the object of its arguments."""

    name: str
    arguments: dict[str, Any]


class ToolCall(TypedDict):
    """A call of a tool in the OpenAI form, as chat templates take it."""

    type: str
    function: Function
    id: NotRequired[str]


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it; but `learned`, which they don't see."""

    role: str
    content: str | None
    """None where an assistant turn calls tools and says nothing."""
    reasoning_content: NotRequired[str]
    """What the assistant thought before."""
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    """The tool that answers."""
    learned: NotRequired[bool]
    """False: an assistant turn that is given, not learned."""


def said(message: Message) -> str:
    """All that a message says as plain text: reasoning, content, and the calls of tools."""
    calls = (call["function"] for call in message.get("tool_calls", ()))
    parts = [
        message.get("reasoning_content"),
        message["content"],
        *(f"{call['name']}({json.dumps(call['arguments'], ensure_ascii=False)})" for call in calls),
    ]
    return "\n".join(part for part in parts if part)


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
    tools: list[Mapping[str, Any]] = field(default_factory=list)
    """Definitions of the tools that may be called, for the chat template."""

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
    return "\n".join(map(said, messages))
