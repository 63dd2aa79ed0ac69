"""Tool use through chat templates: the call is learned, and what a template has no place for sets the row aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradsift.data.example import Example, Message
from gradsift.encoding.encoder import EncodedRow, Encoder, EncodingConfig, SetAside
from gradsift.encoding.masks import IGNORED
from gradsift.model.loading import ModelConfig, load_tokenizer

WITH_TOOLS = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}%OPEN%"
    "{% if m.content %}{{ m.content }}{% endif %}{% for call in m.tool_calls or [] %}"
    "<call>{{ call.function.name }} {{ call.function.arguments | tojson }}</call>{% endfor %}{{ eos_token }}%CLOSE%"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
UNMARKED = WITH_TOOLS.replace("%OPEN%", "").replace("%CLOSE%", "")
MARKED = WITH_TOOLS.replace("%OPEN%", "{% generation %}").replace("%CLOSE%", "{% endgeneration %}")
TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def call(name: str = "weather", **arguments: Any) -> Any:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def conversation() -> list[Message]:
    return [
        {"role": "user", "content": "Is it warm?"},
        {"role": "assistant", "content": None, "tool_calls": [call(city="Bern"), call(city="Basel", days=2)]},
        {"role": "tool", "content": '{"t": 21}', "name": "weather"},
        {"role": "assistant", "content": "It is."},
    ]


@pytest.fixture
def encode(tiny_model_folder: Path, tmp_path: Path) -> Any:
    """Encodes a conversation under a template: the supervised text, or the reason why it is set aside."""
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(tiny_model_folder)))

    def encoded(jinja: str, messages: list[Message], tools: Any = (), **config: Any) -> str:
        (tmp_path / "own.jinja").write_text(jinja)
        name = jinja if jinja in ("tulu", "chatml") else str(tmp_path / "own.jinja")
        encoder = Encoder(tokenizer, EncodingConfig(template=name, **config))
        (row,) = encoder.encode([Example("x", messages, "pool", tools=list(tools))])
        if isinstance(row, SetAside):
            return row.reason
        assert isinstance(row, EncodedRow)
        return str(tokenizer.decode(row.labels[row.labels != IGNORED]))

    return encoded


CALLS = '<call>weather {"city": "Bern"}</call><call>weather {"city": "Basel", "days": 2}</call></s>'


@pytest.mark.parametrize("jinja", [UNMARKED, MARKED], ids=["by prefix", "marked"])
def test_calls_are_learned_and_answers_of_tools_are_not(encode: Any, jinja: str) -> None:
    assert encode(jinja, conversation(), TOOLS) == CALLS + "It is.</s>"


@pytest.mark.parametrize("jinja", [UNMARKED, MARKED], ids=["by prefix", "marked"])
def test_a_call_that_is_marked_is_not_learned(encode: Any, jinja: str) -> None:
    messages = conversation()
    messages[1]["learned"] = False
    assert encode(jinja, messages, TOOLS) == "It is.</s>"


def test_a_call_alone_is_an_answer(encode: Any) -> None:
    assert encode(UNMARKED, conversation()[:2]) == CALLS


@pytest.mark.parametrize(
    ("jinja", "lacking"),
    [
        ("tulu", "tool calls"),
        ("chatml", "tool calls"),
        (UNMARKED.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]"), "tool calls"),
        (UNMARKED.replace("{{ call.function.name }}", ""), "tool calls"),
        (UNMARKED.replace("{{ call.function.arguments | tojson }}", ""), "the arguments of tool calls"),
        (
            UNMARKED.replace("{% else %}{{ m.content }}", "{% elif m.role == 'user' %}{{ m.content }}"),
            "what tools answer",
        ),
        (UNMARKED.replace("{{ tool | tojson }}", "{{ tool.type }}"), "definitions of tools"),
        (UNMARKED.replace("if tools", "if false").replace("in tools", "in []"), "definitions of tools"),
    ],
)
def test_what_a_template_does_not_show_sets_the_row_aside(encode: Any, jinja: str, lacking: str) -> None:
    assert encode(jinja, conversation(), TOOLS) == f"the template has no place for {lacking}"


def test_definitions_alone_need_a_place_too(encode: Any) -> None:
    messages: list[Message] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert encode("tulu", messages, TOOLS) == "the template has no place for definitions of tools"
    assert encode(UNMARKED, messages, TOOLS) == "Ho</s>"


def test_calls_without_arguments_need_no_place_for_them(encode: Any) -> None:
    names_alone = UNMARKED.replace("{{ call.function.arguments | tojson }}", "")
    messages: list[Message] = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call("clock")]},
    ]
    assert encode(names_alone, messages) == "<call>clock </call></s>"


def test_a_template_that_knows_its_tools_by_name_is_believed(encode: Any) -> None:
    strict = UNMARKED.replace(
        "<call>", "{% if call.function.name != 'weather' %}{{ raise_exception('which?') }}{% endif %}<call>", 1
    )
    assert encode(strict, conversation(), TOOLS) == CALLS + "It is.</s>"
