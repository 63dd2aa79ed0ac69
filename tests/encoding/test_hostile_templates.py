"""Templates that nobody would write: rows are set aside or the template is refused in one line, within seconds."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
from runs import gradsift, tiny_run

from gradsift.data.example import Example, Message
from gradsift.encoding.encoder import EncodedRow, Encoder, EncodingConfig, SetAside
from gradsift.encoding.rendering import ConversationRefused, Renderer
from gradsift.errors import TemplateError
from gradsift.model.loading import ModelConfig, load_tokenizer

NUM_TEMPLATES = 500
LONGEST_SECONDS = 10.0

VALUES = ["messages", "m", "m.content", "m.role", "tools", "eos_token", "loop", "none", "3", "-1", "'x'", "[m]"]
VALUES += ["{1: m}", "range(9 ** 9)", "range(99999)", "''.__class__", "namespace(a=m)", "dict(m)", "caller", "self"]
VALUES += ["strftime_now('%Q')", "lipsum", "cycler(1)", "joiner()", "raise_exception", "m.tool_calls", "messages[-9]"]
OPERATORS = [" + ", " * ", " ** ", " - ", " / ", " // ", " % ", " ~ ", " in ", " is ", " == ", " < ", " and ", " | "]
OPERATORS += [".", ", "]
FILTERS = ["tojson", "trim", "upper", "join", "list", "sort", "first", "random", "map('upper')", "batch(2)", "length"]
FILTERS += [
    "sum",
    "string",
    "items",
    "groupby('role')",
    "selectattr('role')",
    "replace('a', 'b' * 99)",
    "pprint",
    "int",
]
BLOCKS = [
    "{{% for m in {0} %}}{1}{{% endfor %}}",
    "{{% for m in {0} recursive %}}{{{{ loop(m) }}}}{{% endfor %}}",
    "{{% for m in range(99999) %}}{1}{{% endfor %}}",
    "{{% if {0} %}}{1}{{% else %}}{{{{ {0} }}}}{{% endif %}}",
    "{{% generation %}}{1}{{% endgeneration %}}",
    "{{% set m = {0} %}}{1}",
    "{{% set x %}}{1}{{% endset %}}{{{{ x }}}}",
    "{{% macro f(m) %}}{1}{{{{ f({0}) }}}}{{% endmacro %}}{{{{ f({0}) }}}}",
    "{{% call(m) {0}() %}}{1}{{% endcall %}}",
    "{{% include {0} %}}",
    "{{% import {0} as m %}}",
    "{{% filter upper %}}{1}{{% endfilter %}}",
    "{{% break %}}{1}",
    "{{{{ {0} }}}}{1}",
    "{{{{ m.content }}}}{1}",
    "{{% {1} %}}",
    "{{# {1} #}}",
    "{{{{ {0}",
]


def expression(draw: random.Random, depth: int = 0) -> str:
    kind = draw.random()
    if depth > 2 or kind < 0.5:
        return draw.choice(VALUES)
    if kind < 0.75:
        return f"{expression(draw, depth + 1)} | {draw.choice(FILTERS)}"
    return expression(draw, depth + 1) + draw.choice(OPERATORS) + expression(draw, depth + 1)


def block(draw: random.Random, depth: int = 0) -> str:
    if depth > 3:
        return "{{ m.content }}"
    inner = "".join(block(draw, depth + 1) for _ in range(draw.randint(0, 2)))
    return draw.choice(BLOCKS).format(expression(draw), inner)


CALL: Any = {"type": "function", "function": {"name": "f", "arguments": {}}}
MESSAGES: list[Message] = [
    {"role": "user", "content": "Hi"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
    },
    {"role": "tool", "content": "1"},
    {"role": "assistant", "content": "Ho"},
]

VARIABLES = {"messages": MESSAGES, "m": MESSAGES[0], "tools": None, "eos_token": "</s>"}


def test_no_template_ends_a_rendering_otherwise_than_by_text_or_refusal() -> None:
    draw = random.Random(0)
    outcomes = {"text": 0, "refused": 0}
    for _ in range(NUM_TEMPLATES):
        jinja, began = "".join(block(draw) for _ in range(draw.randint(1, 4))), time.process_time()
        try:
            Renderer("fuzzed", jinja).render(
                {"messages": MESSAGES, "m": MESSAGES[0], "tools": None, "eos_token": "</s>"}
            )
            outcomes["text"] += 1
        except TemplateError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
        assert time.process_time() - began < LONGEST_SECONDS, jinja
    assert min(outcomes.values()) > NUM_TEMPLATES // 20  # both happen


def test_rows_under_any_template_are_encoded_or_set_aside(tiny_model_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(name_or_path=str(tiny_model_folder)))
    draw, path = random.Random(1), tmp_path / "fuzzed.jinja"
    examples = [Example("tools", MESSAGES, "pool"), Example("plain", [MESSAGES[0], MESSAGES[3]], "pool")]
    for number in range(NUM_TEMPLATES // 5):
        about = "{% for m in messages %}[{{ m.role }}]{{ m.content }}" + block(draw) + "{% endfor %}"
        path.write_text(about)
        try:
            rows = Encoder(tokenizer, EncodingConfig(template=str(path))).encode(examples, keep_answers=number % 2 == 0)
        except TemplateError:
            continue
        assert [type(row) in (EncodedRow, SetAside) for row in rows] == [True, True]


@pytest.mark.parametrize(
    ("jinja", "said"),
    [
        (
            b"{{ 1 / 0 }}",
            "can't show 24 of 24 rows; the first, pool/row-00: the template refuses it: Zero",
        ),
        (b"{% include 'x' %}", "the template refuses it: TypeError"),
        (b"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "doesn't end"),
        (b"{% for", "is not valid Jinja"),
        (b"\xff{{ x }}", "is not text in UTF-8"),
        (b"", "doesn't show every assistant text"),
    ],
)
def test_a_run_under_a_hostile_template_ends_in_one_line(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], jinja: bytes, said: str
) -> None:
    (tmp_path / "hostile.jinja").write_bytes(jinja)
    encoding: dict[str, Any] = {"template": str(tmp_path / "hostile.jinja"), "max_length": 128}
    assert gradsift("run", tiny_run(tmp_path, tiny_model_folder, encoding=encoding), "--until", "encode") == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


def test_a_run_goes_on_without_the_rows_that_a_template_refuses(tiny_model_folder: Path, tmp_path: Path) -> None:
    picky = (
        "{% for m in messages %}{% if 'Say it.' in m.content and '3' in m.content %}{{ raise_exception('no threes') }}"
        "{% endif %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    (tmp_path / "picky.jinja").write_text(picky)
    encoding: dict[str, Any] = {"template": str(tmp_path / "picky.jinja"), "max_length": 128}
    assert gradsift("run", tiny_run(tmp_path, tiny_model_folder, encoding=encoding), "--until", "encode") == 0
    aside = (tmp_path / "run" / "pool" / "set_aside.jsonl").read_text()
    assert "the template refuses it: no threes" in aside
    assert 0 < aside.count("\n") <= 12


@pytest.mark.parametrize(
    "expression",
    [
        "'{:>999999999}'.format(1)",
        "'{:>{}}'.format(1, 999999999)",
        "'{:.999999999f}'.format(1.0)",
        "'{0:>{w}}'.format_map({'w': 999999999})",
        "'%999999999d' % 1",
        "'%*d' % (999999999, 1)",
        "'%.999999999f' % 1.0",
        "'%999999999s' | format('x')",
        "'x'.center(999999999)",
        "'x'.ljust(width=999999999)",
        "'1'.zfill(999999999)",
        "'x' | center(999999999)",
        "'x\\ny' | indent(999999999)",
    ],
)
def test_formatting_to_a_huge_width_is_refused(expression: str) -> None:
    with pytest.raises(ConversationRefused):
        Renderer("t", "{{ " + expression + " }}").render({})


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("'{:>3}|{{12345678}}'.format(1)", "  1|{12345678}"),
        ("'call 12345678: %s %%' % 'x'", "call 12345678: x %"),
        ("'%3d of 123456789' | format(1)", "  1 of 123456789"),
        ("'x'.center(3)", " x "),
        ("'x' | center(3)", " x "),
        ("7 % 3", "1"),
        ("'12345678'.replace('1', 'one')", "one2345678"),
    ],
)
def test_ordinary_formatting_is_as_ever(expression: str, text: str) -> None:
    assert Renderer("t", "{{ " + expression + " }}").render({}).text == text
