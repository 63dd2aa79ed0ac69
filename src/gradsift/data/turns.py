"""Turns of a conversation: how formats name who speaks and what, and the messages that turns become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradsift.data.example import Message
from gradsift.data.values import Fields, checked_list, checked_text, kind_of, listed, optional_text
from gradsift.errors import DataError

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "observation": "tool",
}
"""Names that speakers go by, and the role that chat templates know them under."""


@dataclass(frozen=True, slots=True)
class Turns:
    """How a turn says who speaks and what: the keys to look under, in order, and the roles' names."""

    role_keys: tuple[str, ...]
    content_keys: tuple[str, ...]
    roles: Mapping[str, str]


def user_turn(content: str) -> Message:
    """What the user says."""
    return {"role": "user", "content": content}


def assistant_turn(content: str) -> Message:
    """What the assistant says."""
    return {"role": "assistant", "content": content}


def with_system(fields: Fields, messages: list[Message]) -> list[Message]:
    """A system column opens the conversation, unless a system turn does already (as in LLaMA-Factory)."""
    system = optional_text(fields, "system")
    if not system or not messages or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def turn_messages(field: str, turns: Turns, fields: Fields) -> list[Message]:
    """The messages of a row that has its turns in that field, and perhaps a system column."""
    return with_system(fields, messages_in(fields[field], field, turns))


def messages_in(value: Any, field: str, turns: Turns) -> list[Message]:
    """The messages that a list of turns gives; raises DataError where one can't be read."""
    return [_message(turn, f"{field}[{index}]", turns) for index, turn in enumerate(checked_list(value, field))]


def _message(turn: Any, what: str, turns: Turns) -> Message:
    """A turn as a message. Raises DataError where its role is unknown, or where it holds more than text."""
    if not isinstance(turn, dict):
        raise DataError(f"{what} is {'null' if turn is None else kind_of(turn)}, not an object")
    # Arrow gives every turn every key, so an absent one may be there as null.
    if turn.get("tool_calls") or turn.get("function_call"):
        raise DataError(f"{what} calls a tool, which text can't stand for; leave such rows out")
    role = _first_of(turn, turns.role_keys, what)
    if not isinstance(role, str) or role not in turns.roles:
        raise DataError(f"{what} has the role {role!r}; known roles: {', '.join(turns.roles)}")
    content = _content(_first_of(turn, turns.content_keys, what), f"{what}.{turns.content_keys[0]}")
    return {"role": turns.roles[role], "content": content}


def _first_of(turn: Mapping[str, Any], keys: Sequence[str], what: str) -> Any:
    there = [key for key in keys if key in turn]
    if not there:
        raise DataError(f"{what} has no {keys[0]!r}; it has: {listed(turn)}")
    return next((turn[key] for key in there if turn[key] is not None), None)


def _content(value: Any, what: str) -> str:
    """Text, or a list of text parts joined as they are."""
    if not isinstance(value, list):
        return checked_text(value, what)
    parts = []
    for index, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text":
            shown = part.get("type") if isinstance(part, dict) else kind_of(part)
            raise DataError(f"{what}[{index}] is a part of type {shown!r}; only text can be read")
        parts.append(checked_text(part.get("text"), f"{what}[{index}].text"))
    return "".join(parts)


TURNS = Turns(("role", "from"), ("content", "value"), ROLES)
SHAREGPT_TURNS = Turns(("from", "role"), ("value", "content"), ROLES)
