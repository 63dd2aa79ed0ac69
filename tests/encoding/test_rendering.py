"""Rendering: what transformers renders, the same on every day and machine, whatever a template does."""

from __future__ import annotations

import locale
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gradsift.encoding import rendering
from gradsift.encoding.rendering import ConversationRefused, Renderer, fixed_time
from gradsift.errors import TemplateError

MESSAGES = [
    {"role": "system", "content": " Be <kind> & brief. "},
    {"role": "user", "content": "Weather in Zürich?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "n": 2}}}],
    },
    {"role": "tool", "content": '{"t": 21}', "name": "weather"},
    {"role": "assistant", "content": "21 <b>degrees</b>.\n"},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
VARIABLES: dict[str, Any] = {
    "messages": MESSAGES,
    "tools": TOOLS,
    "documents": None,
    "add_generation_prompt": True,
    "bos_token": "<s>",
    "eos_token": "</s>",
}
TEMPLATES = {
    "tools and whitespace control": """
{%- if tools %}
    {{- '# Tools\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
{%- endif %}
{% for m in messages %}
  {% if m.role == 'assistant' %}
    {% generation %}
    {%- if m.tool_calls %}{% for call in m.tool_calls %}
{{ call.function.name }}{{ call.function.arguments | tojson(indent=2) }}{% endfor %}{% else %}
{{ m.content | trim }}{% endif %}{{ eos_token }}
    {% endgeneration %}
  {% else %}
<|{{ m.role }}|>{{ m.content | trim }}
  {% endif %}
{% endfor %}
{% if add_generation_prompt %}<|assistant|>{% endif %}""",
    "macros, namespaces and loop controls": """
{%- macro shown(message) -%}[{{ message.role | upper }}] {{ message.content if message.content is string else '-' }}
{%- endmacro -%}
{%- set ns = namespace(count=0, last=none) -%}
{%- for m in messages[::-1] -%}
  {%- if m.role == 'tool' %}{% continue %}{% endif -%}
  {%- set ns.count = ns.count + 1 -%}{{ shown(m) }}{{ loop.index }}/{{ loop.length }}{{ '\\n' }}
  {%- if ns.count > 2 %}{% break %}{% endif -%}
{%- endfor -%}
{{ ns.count }}{{ dict(a=1) }}{{ messages | map(attribute='role') | join(', ') }}{{ undefined_name }}
{%- for m in messages if m.role == 'user' %}{{ loop.first }}{{ loop.last }}{% else %}none{% endfor %}""",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_text_and_marks_are_those_of_transformers(template: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, marks = render_jinja_template(
        conversations=[MESSAGES],
        chat_template=template,
        return_assistant_tokens_mask="generation" in template,
        **{name: value for name, value in VARIABLES.items() if name != "messages"},
    )
    rendered = Renderer("own", template).render(VARIABLES)
    assert rendered.text == texts[0]
    assert rendered.marks == [tuple(mark) for mark in marks[0]] if "generation" in template else not rendered.marks


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """Another time zone, and a locale with other names of months where the machine has one."""
    zone, names = os.environ.get("TZ"), locale.setlocale(locale.LC_TIME)
    os.environ["TZ"] = "Pacific/Kiritimati"
    time.tzset()
    for name in ("de_DE.UTF-8", "fr_FR.UTF-8"):
        try:
            locale.setlocale(locale.LC_TIME, name)
            break
        except locale.Error:
            continue
    yield
    locale.setlocale(locale.LC_TIME, names)
    os.environ.pop("TZ") if zone is None else os.environ.update(TZ=zone)
    time.tzset()


CLOCK = "%d %b %Y|%A %-d %B|%a %H:%M:%S %p|%c|%x %X|%j %s %z%Z%%"
SHOWN = "26 Jul 2024|Friday 26 July|Fri 00:00:00 AM|Fri Jul 26 00:00:00 2024|07/26/24 00:00:00|208 1721952000 %"


def test_the_clock_stands_still() -> None:
    assert Renderer("clock", "{{ strftime_now(form) }}").render({"form": CLOCK}).text == SHOWN


@pytest.mark.usefixtures("elsewhere")
def test_the_clock_is_the_same_in_every_time_zone_and_locale() -> None:
    assert fixed_time(CLOCK) == SHOWN


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ range(10 ** 9) }}", "Range too big"),
        ("{% include 'other.jinja' %}", "no loader"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ messages + 3 }}", "TypeError"),
        ("{{ messages[0].no.thing }}", "has no attribute"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "append"),
        ("{{ 'a' * 10 ** 12 }}", "longer than"),
        ("{{ 10 ** (10 ** 10) }}", "too large"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "namespace"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ strftime_now(3) }}", "Error"),
        # What differs from run to run is refused too.
        ("{{ [1, 2] | random }}", "at random"),
        ("{{ lipsum() }}", "at random"),
        ("{{ messages | map(attribute='role') }}", "prints a generator"),
        ("{{ messages[0].items }}", "prints a builtin"),
    ],
)
def test_whatever_a_template_raises_is_its_refusal(template: str, said: str) -> None:
    with pytest.raises(ConversationRefused, match=said):
        Renderer("bad", template).render({"messages": MESSAGES})


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ (range(99999) | list)[0] }}{% endfor %}",
        "{% for a in range(99999) %}{% set x = [0] * 99999 %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
    ids=["loops", "filtered loops", "ranges", "lists", "macros"],
)
def test_a_template_without_end_is_refused(template: str) -> None:
    with pytest.raises(TemplateError, match="the template endless doesn't end") as caught:
        Renderer("endless", template).render({})
    assert not isinstance(caught.value, ConversationRefused)


def test_steps_are_counted_anew_for_every_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "MAX_STEPS", 150)
    renderer = Renderer("long", "{% for a in messages * 20 %}{% endfor %}")
    assert [renderer.render({"messages": [1, 2]}).text for _ in range(5)] == [""] * 5
    with pytest.raises(TemplateError, match="doesn't end"):
        renderer.render({"messages": [1, 2, 3, 4]})


@pytest.mark.parametrize("template", ["{% for m in messages %}", "{{ x | nofilter }}", "{{ " + "(" * 5000])
def test_a_template_that_does_not_compile_is_refused(template: str) -> None:
    with pytest.raises(TemplateError, match="the template broken "):
        Renderer("broken", template)


def test_marks_whose_place_is_not_known_are_refused() -> None:
    template = "{% set turn %}{% generation %}Ho{% endgeneration %}{% endset %}Hi {{ turn }}"
    with pytest.raises(ConversationRefused, match="place isn't known"):
        Renderer("set", template).render({})
