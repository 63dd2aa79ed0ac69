"""Turns of a conversation: how formats name who speaks and what, and the messages that turns become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradsift.data.example import Message
from gradsift.data.tool_use import calls_in_text, calls_of, tool_definitions
from gradsift.data.values import Fields, checked_list, checked_text, kind_of, listed, optional_text
from gradsift.errors import DataError

CALLS = "tool_calls"
"""Stands for the role of a turn whose text is the JSON of tool calls: the assistant's."""

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
    "function_call": CALLS,
    "tool_call": CALLS,
    "tool": "tool",
    "tool_response": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Names that speakers go by, and the role that chat templates know them under."""

MARKS = ("weight", "train", "training", "train_on_turn", "loss")
"""Keys under which public data says of a turn whether it is learned: OpenAI and Mistral, axolotl, ms-swift."""
NUMBERED_MARKS = ("weight", "train", "training", "train_on_turn")
"""Those that may be numbers; a `loss` that is one was measured."""
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys under which transformers finds what an assistant thought."""
TOOL_KEYS = ("tool_call_id", "name")
"""Keys of a tool's answer that chat templates look at."""


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


def tools_of(fields: Fields) -> list[Mapping[str, Any]]:
    """The definitions in the `tools` column, else beside the text of a system turn."""
    if definitions := tool_definitions(fields.get("tools"), "tools"):
        return definitions
    for field, turns in fields.items():
        for index, turn in enumerate(turns if isinstance(turns, list) else ()):
            if isinstance(turn, dict) and turn.get("tools") and "system" in (turn.get("role"), turn.get("from")):
                return tool_definitions(turn["tools"], f"{field}[{index}].tools")
    return []


def given(messages: Sequence[Message]) -> list[Message]:
    """The messages with no turn of theirs to be learned."""
    return [{**message, "learned": False} if message["role"] == "assistant" else message for message in messages]


def _message(turn: Any, what: str, turns: Turns) -> Message:
    """A turn as a message. Raises DataError where its role is unknown, or where it holds more than text and calls."""
    if not isinstance(turn, dict):
        raise DataError(f"{what} is {'null' if turn is None else kind_of(turn)}, not an object")
    named = _first_of(turn, turns.role_keys, what)
    if not isinstance(named, str) or named not in turns.roles:
        raise DataError(f"{what} has the role {named!r}; known roles: {', '.join(turns.roles)}")
    role = turns.roles[named]
    place = f"{what}.{turns.content_keys[0]}"
    calls = calls_of(turn, what)
    if role == CALLS:
        text = _content(_first_of(turn, turns.content_keys, what), place)
        thought, calls = calls_in_text(text, place)
        message = Message(role="assistant", content=thought)
    elif calls and role == "assistant":
        text_there = next((turn[key] for key in turns.content_keys if turn.get(key) is not None), None)
        message = Message(role=role, content=None if text_there is None else _content(text_there, place))
    elif calls:
        raise DataError(f"{what} calls a tool, but its role is {named!r}")
    else:
        message = Message(role=role, content=_content(_first_of(turn, turns.content_keys, what), place))
    if calls:
        message["tool_calls"] = calls
    return _with_more(message, turn, what)


def _with_more(message: Message, turn: Mapping[str, Any], what: str) -> Message:
    """The message with what the turn says besides: reasoning, which tool answers, whether it is learned."""
    if message["role"] == "assistant":
        thought = next((turn[key] for key in REASONING if isinstance(turn.get(key), str) and turn[key]), None)
        if thought is not None:
            message["reasoning_content"] = checked_text(thought, f"{what}.reasoning_content")
        if not _is_learned(turn, what):
            message["learned"] = False
    if message["role"] == "tool":
        for key in TOOL_KEYS:
            if turn.get(key) is not None:
                message[key] = checked_text(turn[key], f"{what}.{key}")  # type: ignore[literal-required]
    return message


def _is_learned(turn: Mapping[str, Any], what: str) -> bool:
    """Whether every mark of the turn that is there says so; Arrow puts null where there is none."""
    if turn.get("train_detail") is not None:
        raise DataError(f"{what}.train_detail marks parts of a turn; only whole turns can be left out")
    return all(_mark(turn[key], key, what) for key in MARKS if turn.get(key) is not None)


def _mark(value: Any, key: str, what: str) -> bool:
    if isinstance(value, bool):
        return value
    if key not in NUMBERED_MARKS:
        return True
    spelt = value.strip().lower() if isinstance(value, str) else value
    if isinstance(spelt, str) and spelt in SPELT:
        return SPELT[spelt]
    if not isinstance(spelt, str) and spelt in (0, 1):
        return bool(spelt)
    raise DataError(f"{what}.{key} is {value!r}; a turn is learned (1, true) or it isn't (0, false)")


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


SPELT = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "": True}
"""Marks in tables without types."""

TURNS = Turns(("role", "from"), ("content", "value"), ROLES)
SHAREGPT_TURNS = Turns(("from", "role"), ("value", "content"), ROLES)
