"""Widths: formatting by which a few characters of a template could make a text of any length; such are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from jinja2.sandbox import SecurityError

MAX_WIDTH = 10_000_000
"""Characters that a text may be padded to."""
_PERCENT = re.compile(r"%[-#0 +]*[0-9.]*([0-9]{8}|\*)")
_BRACES = re.compile(r"\{[^{}]*(:[^{}]*[0-9]{8}|\{)")
"""Widths of eight digits, or from the arguments."""
FORMATTING_FILTERS = ("center", "format", "indent", "wordwrap")


def require_small_widths(form: str, braces: bool = False) -> None:
    """Raise SecurityError where a format names a huge width, or takes one from its arguments.

    `form` is for `%`, or with `braces` for `str.format`.
    """
    text = form.replace("{{", "").replace("}}", "") if braces else form.replace("%%", "")
    if (_BRACES if braces else _PERCENT).search(text):
        raise SecurityError(f"it formats to more than {MAX_WIDTH:,} characters, or to a width that it doesn't show")


def require_small_numbers(*values: Any) -> None:
    """Raise SecurityError where one of a method's or filter's arguments is a huge number."""
    if any(isinstance(value, int) and value > MAX_WIDTH for value in values):
        raise SecurityError(f"a text is padded to more than {MAX_WIDTH:,} characters")


def narrow(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A formatting filter that refuses huge widths."""

    @wraps(function)
    def filtered(*arguments: Any, **named: Any) -> Any:
        require_small_numbers(*arguments, *named.values())
        if name == "format":
            require_small_widths(str(arguments[0]))
        return function(*arguments, **named)

    return filtered
