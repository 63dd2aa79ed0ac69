"""Turns: which are marked not to be learned, and how tools are called."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gradsift.data.example import Example
from gradsift.data.formats import FORMATS
from gradsift.data.turns import tools_of
from gradsift.errors import DataError

ARGUMENTS = {"city": "Zürich", "days": 2}
CALL: dict[str, Any] = {"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": {}}}


def messages_of(name: str, fields: dict[str, Any]) -> list[Any]:
    to_messages = FORMATS[name].messages
    assert to_messages is not None
    return to_messages(fields)


def assistant(**more: Any) -> Any:
    """The message of an assistant turn that also says that."""
    return messages_of("messages", {"messages": [{"role": "assistant", "content": "Ho", **more}]})[0]


# Marks


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 0},
        {"weight": 0.0},
        {"weight": False},
        {"weight": "0"},
        {"train": False},
        {"train": "False"},
        {"training": False},
        {"train_on_turn": False},
        {"loss": False},
        {"weight": 1, "train": False},
    ],
    ids=str,
)
def test_turn_that_is_marked_is_not_learned(mark: dict[str, Any]) -> None:
    assert assistant(**mark) == {"role": "assistant", "content": "Ho", "learned": False}


@pytest.mark.parametrize(
    "mark",
    [{}, {"weight": None}, {"weight": 1}, {"weight": 1.0}, {"train": True}, {"train": ""}, {"loss": 1.7}],
    ids=str,
)
def test_turn_that_is_not_marked_is_learned(mark: dict[str, Any]) -> None:
    assert assistant(**mark) == {"role": "assistant", "content": "Ho"}


@pytest.mark.parametrize("mark", [{"weight": 0.5}, {"weight": -1}, {"train": "maybe"}, {"train": [1]}], ids=str)
def test_mark_that_is_neither_is_refused(mark: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"messages\[0\]\.(weight|train) is .*; a turn is learned \(1, true\) or"):
        assistant(**mark)


def test_parts_of_a_turn_cannot_be_marked() -> None:
    with pytest.raises(DataError, match=r"train_detail marks parts of a turn"):
        assistant(train_detail=[{"begin_offset": 0, "end_offset": 1, "train": False}])


@pytest.mark.parametrize("role", ["user", "system"])
def test_marks_of_other_turns_change_nothing(role: str) -> None:
    turn = {"role": role, "content": "Hi", "weight": 0}
    assert messages_of("messages", {"messages": [turn]}) == [{"role": role, "content": "Hi"}]


def test_answers_in_a_conversational_prompt_are_given() -> None:
    question, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
    messages = messages_of("prompt_completion", {"prompt": [question, answer, question], "completion": [answer]})
    assert messages == [question, {**answer, "learned": False}, question, answer]


# Reasoning and tools


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_goes_to_the_template(key: str) -> None:
    assert assistant(**{key: "Well"})["reasoning_content"] == "Well"
    assert "reasoning_content" not in assistant(**{key: None})


@pytest.mark.parametrize("content", [{"content": None}, {}, {"content": ""}], ids=["null", "absent", "empty"])
@pytest.mark.parametrize(
    "arguments", [CALL["function"]["arguments"], json.dumps(CALL["function"]["arguments"])], ids=type
)
def test_calls_have_their_arguments_as_an_object(content: dict[str, Any], arguments: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    turn = {"role": "assistant", **content, "tool_calls": [call]}
    (message,) = messages_of("messages", {"messages": [turn]})
    assert message == {"role": "assistant", "content": content.get("content"), "tool_calls": [{**CALL, "id": "1"}]}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "tool_calls": [CALL["function"]]},
        {"role": "assistant", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "content": None, "function_call": CALL["function"]},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "function_call", "value": json.dumps([CALL["function"]])},
        {"role": "tool_call", "content": json.dumps(CALL["function"])},
    ],
    ids=["bare", "JSON text", "old function_call", "ShareGPT", "ShareGPT, several", "tool_call"],
)
def test_calls_are_read_however_they_are_laid_out(turn: dict[str, Any]) -> None:
    assert messages_of("messages", {"messages": [turn]}) == [
        {"role": "assistant", "content": None, "tool_calls": [CALL]}
    ]


def test_a_thought_before_a_call_stays_its_text() -> None:
    value = "<think>\nTo the map.\n</think>\n\n" + json.dumps(CALL["function"])
    (message,) = messages_of("sharegpt", {"conversations": [{"from": "function_call", "value": value}]})
    assert (message["content"], message["tool_calls"]) == ("<think>\nTo the map.\n</think>", [CALL])


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (
            {"role": "tool", "content": "21", "tool_call_id": "1", "name": "weather"},
            {"tool_call_id": "1", "name": "weather"},
        ),
        ({"role": "function", "content": "21", "name": "weather"}, {"name": "weather"}),
        ({"from": "observation", "value": "21", "name": None}, {}),
    ],
)
def test_answers_of_tools_say_which(turn: dict[str, Any], said: dict[str, Any]) -> None:
    assert messages_of("messages", {"messages": [turn]}) == [{"role": "tool", "content": "21", **said}]


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "arguments is not valid JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            "a list, not an object",
        ),
        ({"role": "assistant", "tool_calls": [{"function": {"name": 3}}]}, r"name is a number"),
        ({"role": "assistant", "tool_calls": "f()"}, "tool_calls is not valid JSON"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": "\ud800"}}]}, "surrogate"),
        ({"from": "function_call", "value": "call f"}, "not valid JSON"),
        ({"from": "function_call", "value": "[]"}, "calls no tool"),
        ({"role": "tool", "content": {"t": 21}}, "content is an object"),
    ],
)
def test_calls_that_cannot_be_read_are_described(turn: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        messages_of("messages", {"messages": [turn]})


def test_arguments_nested_too_deeply_are_refused() -> None:
    call = {"name": "f", "arguments": '{"a":' * 100_000}
    with pytest.raises(DataError, match=r"nested too deeply|not valid JSON"):
        assistant(tool_calls=[call])


@pytest.mark.parametrize(
    "tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)], TOOL, json.dumps([TOOL["function"]])], ids=type
)
def test_definitions_are_a_list_or_its_text(tools: Any) -> None:
    assert tools_of({"messages": [], "tools": tools}) == [TOOL]


@pytest.mark.parametrize("tools", [None, "", " ", []])
def test_no_definitions_are_none(tools: Any) -> None:
    assert tools_of({"messages": [], "tools": tools}) == []


def test_definitions_may_stand_in_the_system_turn() -> None:
    assert tools_of({"messages": [{"role": "system", "content": "Hi", "tools": json.dumps([TOOL])}]}) == [TOOL]


@pytest.mark.parametrize("tools", ["no JSON", 3, [3], '{"a"'])
def test_definitions_that_cannot_be_read_are_refused(tools: Any) -> None:
    with pytest.raises(DataError, match=r"^tools"):
        tools_of({"tools": tools})


def test_texts_hold_what_is_called() -> None:
    messages = messages_of("messages", {"messages": [{"role": "assistant", "content": "Well.", "tool_calls": [CALL]}]})
    example = Example("x", messages, "pool")
    assert example.text == example.answer == 'Well.\nweather({"city": "Zürich", "days": 2})'
