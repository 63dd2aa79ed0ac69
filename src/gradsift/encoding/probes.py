"""Probes: conversations with other texts in their places, which show what a template does with each of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from gradsift.data import Example, Message
from gradsift.encoding.rendering import ConversationRefused


def with_turns_named(messages: Sequence[Message], text: str) -> tuple[list[Message], re.Pattern[str]]:
    """The messages with a name at the end of every text of every assistant turn, and the pattern that finds it.

    The pattern's group is the turn. A text that is empty stays so, but where a turn has no other: templates ask whether
    there is one. `text` is what the name must not stand in.
    """
    word = "turn"
    while word in text:
        word += "x"
    named = [_named(message, f" {word}{turn}n") for turn, message in enumerate(messages)]
    return named, re.compile(rf"{word}(\d+)n")


def _named(message: Message, name: str) -> Message:
    if message["role"] != "assistant":
        return message
    named = message.copy()
    if message.get("tool_calls"):
        calls = message["tool_calls"]
        named["tool_calls"] = [
            {**call, "function": {**call["function"], "name": call["function"]["name"] + name.strip()}}
            for call in calls
        ]
    if message.get("reasoning_content"):
        named["reasoning_content"] = message["reasoning_content"] + name
    if message["content"] or not (message.get("tool_calls") or message.get("reasoning_content")):
        named["content"] = (message["content"] or "") + name
    return named


def without_place_for_tools(example: Example, jinja: str, render: Callable[[Example], str]) -> str | None:
    """What of a conversation's tool use a template doesn't show, in words; None where it shows all.

    Every name, argument and answer is replaced by a word of its own, and looked for in what is rendered.
    """
    probe, words = _with_words(example)
    if not words:
        return None
    if any(message.get("tool_calls") for message in example.messages) and "tool_calls" not in jinja:
        return "tool calls"
    if example.tools and "tools" not in jinja:
        return "definitions of tools"
    try:
        text = render(probe)
    except ConversationRefused:
        return None  # it knows the tools by their names: what it refuses is told when the conversation is rendered
    return next((what for word, what in words.items() if word not in text), None)


def _with_words(example: Example) -> tuple[Example, dict[str, str]]:
    """The example with words in place of what tools are called with and answer, and what each word stands for."""
    words: dict[str, str] = {}

    def word(what: str) -> str:
        words[f"tool{len(words)}word"] = what
        return next(reversed(words))

    messages = [_message_with_words(message, word) for message in example.messages]
    tools = [_definition_with_word(tool, word) for tool in example.tools]
    return replace(example, messages=messages, tools=tools), words


def _message_with_words(message: Message, word: Callable[[str], str]) -> Message:
    changed = message.copy()
    if message.get("tool_calls"):
        changed["tool_calls"] = [
            {
                **call,
                "function": {
                    "name": word("tool calls"),
                    "arguments": {
                        word("the arguments of tool calls"): word("the arguments of tool calls")
                        for _ in call["function"]["arguments"]
                    },
                },
            }
            for call in message["tool_calls"]
        ]
    if message["role"] == "tool" and message["content"]:
        changed["content"] = word("what tools answer")
    return changed


def _definition_with_word(tool: Any, word: Callable[[str], str]) -> Any:
    function = tool.get("function")
    if not isinstance(function, dict) or "name" not in function:
        return tool
    return {**tool, "function": {**function, "name": word("definitions of tools")}}
