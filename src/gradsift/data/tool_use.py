"""Tool use in rows: the calls of an assistant turn and the definitions of tools, as chat templates take them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from gradsift.data.example import ToolCall
from gradsift.data.values import checked_list, checked_text, kind_of, listed
from gradsift.errors import DataError

THOUGHT = re.compile(r"\s*(<think>.*?</think>)\s*(.*)", re.DOTALL)
"""Reasoning before a call that is written as JSON, as in LLaMA-Factory."""


def calls_of(turn: Mapping[str, Any], what: str) -> list[ToolCall]:
    """The calls of a turn in the OpenAI form, the old `function_call` too; Arrow puts null where there are none."""
    calls = turn.get("tool_calls")
    if calls is not None and calls != "":
        read = _from_json(calls, f"{what}.tool_calls")
        return [_call(call, f"{what}.tool_calls[{index}]") for index, call in enumerate(checked_list(read, what))]
    old = turn.get("function_call")
    return [_call(_from_json(old, f"{what}.function_call"), f"{what}.function_call")] if old else []


def calls_in_text(text: str, what: str) -> tuple[str | None, list[ToolCall]]:
    """What is thought, if anything, and the calls of a turn whose text is the JSON of one call or of a list."""
    thought = THOUGHT.fullmatch(text)
    calls = _from_json(thought.group(2) if thought else text, what)
    listed_calls = calls if isinstance(calls, list) else [calls]
    if not listed_calls:
        raise DataError(f"{what} calls no tool: its list is empty")
    return thought.group(1) if thought else None, [
        _call(call, f"{what}[{index}]") for index, call in enumerate(listed_calls)
    ]


def tool_definitions(value: Any, what: str) -> list[Mapping[str, Any]]:
    """The definitions in a column, a list or its JSON text; a bare function becomes `{"type": "function", …}`.

    So it does in LLaMA-Factory, whose columns hold bare ones.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    read = _from_json(value, what)
    if isinstance(read, dict):
        read = [read]
    definitions: list[Mapping[str, Any]] = []
    for index, tool in enumerate(checked_list(read, what)):
        tool = _from_json(tool, f"{what}[{index}]")
        if not isinstance(tool, dict):
            raise DataError(f"{what}[{index}] is {kind_of(tool)}, not the definition of a tool")
        definitions.append(tool if "type" in tool or "function" in tool else {"type": "function", "function": tool})
    return definitions


def _call(value: Any, what: str) -> ToolCall:
    """A call, wrapped in `function` or bare, its arguments an object or the JSON text of one."""
    if not isinstance(value, dict):
        raise DataError(f"{what} is {'null' if value is None else kind_of(value)}, not a tool call")
    function = value["function"] if isinstance(value.get("function"), dict) else value
    if "name" not in function:
        raise DataError(f"{what} names no function; it has: {listed(function)}")
    call: ToolCall = {
        "type": "function",
        "function": {
            "name": checked_text(function["name"], f"{what}.name"),
            "arguments": _arguments(function.get("arguments"), f"{what}.arguments"),
        },
    }
    if value.get("id") is not None:
        call["id"] = checked_text(value["id"], f"{what}.id")
    return call


def _arguments(value: Any, what: str) -> dict[str, Any]:
    if value is None or (isinstance(value, str) and not value.strip()):
        return {}
    read = _from_json(value, what)
    if not isinstance(read, dict):
        raise DataError(f"{what} is {'null' if read is None else kind_of(read)}, not an object of arguments")
    return read


def _from_json(value: Any, what: str) -> Any:
    """The value, or what its JSON text says. Raises DataError where it can't be read, or written as UTF-8."""
    try:
        read = json.loads(value) if isinstance(value, str) else value
        json.dumps(read, ensure_ascii=False).encode()
    except RecursionError as error:
        raise DataError(f"{what} is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{what} has half of a surrogate pair") from error
    except ValueError as error:
        raise DataError(f"{what} is not valid JSON: {error}") from error
    except TypeError as error:
        raise DataError(f"{what} holds what JSON lacks: {error}") from error
    return read
