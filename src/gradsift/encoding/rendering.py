"""Rendering: a Jinja chat template as a program, the same on every day and machine; gives back text and marks.

Templates find here what transformers puts into their hands, with three differences: the clock stands still, chance and
addresses in memory are refused, and loops end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError, safe_range
from jinja2.visitor import NodeTransformer

from gradsift.encoding.masks import Span
from gradsift.encoding.widths import FORMATTING_FILTERS, narrow, require_small_numbers, require_small_widths
from gradsift.errors import TemplateError

MOMENT = datetime(2024, 7, 26)
"""What the clock of every template shows: rows must not change from day to day. Llama 3.1's day."""
REFUSES = "the template refuses it: "
MAX_STEPS = 2_000_000
"""Rounds of loops in one rendering, some seconds' worth: more is taken for no end."""
STEPS_OF_A_CALL = 16
"""What the call of a macro counts for, by the time that it takes."""
STEP = "a step"
"""Name of the test that counts; no template can call it."""
MEASURE = "a measure"
"""Name of the filter that measures texts; nor this."""
MAX_TEXT = 2**28
"""Characters of the longest text that a template may put together."""
MAX_REPEATED = 10_000_000
"""Characters or items that `*` may give."""
MAX_SHOWN = 200
"""Characters of an error that a template raises."""
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)


class ConversationRefused(TemplateError):
    """A conversation that a chat template can't show: its row is set aside, and the run goes on."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text, and the characters in the template's generation marks."""

    text: str
    marks: list[Span]


class Renderer:
    """A compiled template. One thread at a time may use it."""

    def __init__(self, name: str, jinja: str) -> None:
        self._name = name
        self._environment = _environment()
        try:
            self._template = self._environment.from_string(jinja)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"the template {name} is not valid Jinja: {error.message}, line {error.lineno}"
            ) from error
        except Exception as error:  # a program that Python can't compile: nested too deeply, say
            raise TemplateError(f"the template {name} can't be compiled: {_reason(error)}") from error
        self._marks: _Marks = self._environment.extensions[_Marks.identifier]
        self._steps: _Steps = self._environment.extensions[_Steps.identifier]
        self.has_marks = self._marks.were_parsed

    def render(self, variables: Mapping[str, Any]) -> Rendered:
        """The text. Raises ConversationRefused with what the template raises, TemplateError where it doesn't end."""
        self._steps.left = MAX_STEPS
        self._marks.begin()
        try:
            for piece in self._template.generate(variables):
                self._marks.pieces.append(piece)
                self._marks.position += len(piece)
                _require_room(self._marks.position)
        except _NoEndError as error:
            raise TemplateError(
                f"the template {self._name} doesn't end: more than {MAX_STEPS:,} rounds of its loops for a conversation"
            ) from error
        except Exception as error:  # a template is a program of the user's, and may raise anything
            raise ConversationRefused(REFUSES + _reason(error)) from error
        return self._marks.rendered()


def fixed_time(form: str) -> str:
    """MOMENT in a strftime format, in English whatever the locale, and in no time zone."""
    named = {
        "a": DAYS[MOMENT.weekday()][:3],
        "A": DAYS[MOMENT.weekday()],
        "b": MONTHS[MOMENT.month - 1][:3],
        "h": MONTHS[MOMENT.month - 1][:3],
        "B": MONTHS[MOMENT.month - 1],
        "c": "Fri Jul 26 00:00:00 2024",
        "x": "07/26/24",
        "X": "00:00:00",
        "r": "12:00:00 AM",
        "p": "AM",
        "P": "am",
        "s": str(int((MOMENT - datetime(1970, 1, 1)).total_seconds())),
        "z": "",
        "Z": "",
        "+": "Fri Jul 26 00:00:00  2024",
        "%": "%",
    }
    text, rest = "", form
    while rest:
        before, percent, rest = rest.partition("%")
        text += before
        if not percent:
            break
        flags = rest[: len(rest) - len(rest.lstrip("-_0^#EO:"))]
        letter, rest = rest[len(flags) : len(flags) + 1], rest[len(flags) + 1 :]
        if letter in named:
            text += named[letter].upper() if "^" in flags else named[letter]
        else:
            text += MOMENT.strftime(f"%{flags.replace('E', '').replace('O', '')}{letter}")
    return text


class _NoEndError(Exception):
    """More steps than a template may take."""


class _Sandbox(ImmutableSandboxedEnvironment):  # type: ignore[misc]
    """transformers' sandbox, with every loop and macro counted."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for node in list(template.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
            node.body.insert(0, nodes.ExprStmt(self._step(node), lineno=node.lineno).set_environment(self))
            if isinstance(node, nodes.For) and node.test is not None:
                node.test = nodes.And(self._step(node), node.test, lineno=node.lineno).set_environment(self)
        return _Measured().visit(template)

    def _step(self, node: nodes.Node) -> nodes.Test:
        # A test, since the sandbox checks every call, which takes longer than the loop.
        count = nodes.Const(1 if isinstance(node, nodes.For) else STEPS_OF_A_CALL)
        return nodes.Test(count, STEP, [], [], None, None, lineno=node.lineno).set_environment(self)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """A sum, product, power or formatted text, if its result isn't huge."""
        if operator == "%" and isinstance(left, str):
            require_small_widths(left)
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            _require_room(len(left) + len(right))
        if operator == "**" and not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise SecurityError("** is for numbers")
        if operator == "**" and isinstance(left, int) and left.bit_length() * max(int(right), 1) > MAX_REPEATED:
            raise SecurityError("the number is too large")
        for repeated, times in ((left, right), (right, left)):
            if operator == "*" and isinstance(repeated, str | list | tuple) and isinstance(times, int):
                if len(repeated) * times > MAX_REPEATED:
                    raise SecurityError(f"what is repeated is longer than {MAX_REPEATED:,}")
                self.extensions[_Steps.identifier].step(max(len(repeated) * times, 0))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __callee: Any, *arguments: Any, **named: Any) -> Any:  # noqa: N805
        """The call, if it isn't one of a text's methods that pads it to a huge width."""
        if isinstance(getattr(__callee, "__self__", None), str):
            require_small_numbers(*arguments, *named.values())
        return super().call(__context, __callee, *arguments, **named)

    def wrap_str_format(self, value: Any) -> Any:
        """`str.format` of a text that shows its widths."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            require_small_widths(value.__self__, braces=True)
        return wrapped


class _Measured(NodeTransformer):  # type: ignore[misc]
    """Measures what `~` puts together, which the sandbox doesn't."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        """The text through a filter that refuses it where it is too long."""
        self.generic_visit(node)
        return nodes.Filter(node, MEASURE, [], [], None, None, lineno=node.lineno).set_environment(node.environment)


class _Steps(Extension):  # type: ignore[misc]
    """Counts what a rendering does."""

    left = MAX_STEPS

    def step(self, count: int = 1) -> bool:
        """True, as long as there are steps left."""
        self.left -= count
        if self.left < 0:
            raise _NoEndError
        return True


class _Marks(Extension):  # type: ignore[misc]
    """The tags `{% generation %}` and `{% endgeneration %}`, and what is rendered between them."""

    tags = frozenset({"generation"})

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.were_parsed = False
        self.begin()

    def begin(self) -> None:
        """Forget the last rendering."""
        self.pieces: list[str] = []
        self.position = 0
        self._found: list[tuple[int, str]] = []

    def parse(self, parser: Any) -> nodes.CallBlock:
        """The block as a call, so that its text passes by."""
        self.were_parsed = True
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("marked"), [], [], body).set_lineno(line)

    def marked(self, caller: Any) -> str:
        """The text of a block, which comes next in what is rendered."""
        text: str = caller()
        self._found.append((self.position, text))
        return text

    def rendered(self) -> Rendered:
        """What was rendered. Raises ConversationRefused where a block's text is not where it was met."""
        text = "".join(self.pieces)
        marks = [(start, start + len(marked)) for start, marked in self._found]
        if any(text[start:end] != marked for (start, end), (_, marked) in zip(marks, self._found, strict=True)):
            raise ConversationRefused(
                "the template's generation marks stand in a macro or a value that is set, and their place isn't known"
            )
        return Rendered(text, marks)


def _environment() -> _Sandbox:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Steps, _Marks, loopcontrols], finalize=_printable
    )
    steps: _Steps = environment.extensions[_Steps.identifier]

    def counted_range(*bounds: int) -> range:
        numbers: range = safe_range(*bounds)
        steps.step(len(numbers))
        return numbers

    environment.tests[STEP] = jinja2.pass_context(lambda _, count: steps.step(count))
    environment.filters[MEASURE] = jinja2.pass_context(lambda _, text: _measured(text))
    environment.filters["tojson"] = _tojson
    environment.filters |= {name: narrow(name, environment.filters[name]) for name in FORMATTING_FILTERS}
    environment.filters["random"] = _chance
    environment.globals.update(
        range=counted_range,
        raise_exception=_raise,
        strftime_now=fixed_time,
        dict=_Dict(),
        namespace=_Namespace,
        lipsum=_chance,
    )
    return environment


def _printable(value: Any) -> Any:
    """The value. Raises SecurityError for one whose text is an address in memory, other in every process."""
    if isinstance(value, str | int | float | list | tuple | dict | None | jinja2.Undefined | jinja2.utils.Namespace):
        return value
    raise SecurityError(f"it prints a {type(value).__name__}, whose text differs from run to run")


def _measured(text: Any) -> Any:
    _require_room(len(text))
    return text


def _require_room(size: int) -> None:
    if size > MAX_TEXT:
        raise SecurityError(f"it puts together more than {MAX_TEXT:,} characters")


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON without HTML's escapes, as in transformers."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: Any) -> None:
    raise jinja2.TemplateError(str(message))


def _chance(*_: Any, **__: Any) -> None:
    raise SecurityError("it draws at random, and rows must not differ from run to run")


class _Dict:
    """`dict` without a class's attributes."""

    def __call__(self, *pairs: Any, **items: Any) -> dict[Any, Any]:
        return dict(*pairs, **items)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        """As dict's."""
        return dict.fromkeys(*arguments)


class _Namespace(jinja2.utils.Namespace):  # type: ignore[misc]
    """Jinja's, without names of Python's own, through which a template could leave the sandbox."""

    def __init__(*arguments: Any, **items: Any) -> None:
        self, *pairs = arguments
        values = dict(*pairs, **items)
        for name in values:
            _require_own_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: Any, value: Any) -> None:
        _require_own_name(name)
        super().__setitem__(name, value)


def _require_own_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace can't hold {name!r}")


def _reason(error: Exception) -> str:
    """What an error says, in one line."""
    text = error.message if isinstance(error, jinja2.TemplateError) else str(error)
    line = " ".join(str(text).split())
    shown = line if len(line) <= MAX_SHOWN else line[:MAX_SHOWN] + "…"
    return (
        shown if isinstance(error, jinja2.TemplateError) and shown else f"{type(error).__name__}: {shown}".rstrip(": ")
    )
