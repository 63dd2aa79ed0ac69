"""Refusals: whether a template shows enough of a pool or target to go on without the rows that it doesn't show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gradsift.encoding.encoder import EncodedRow, SetAside
from gradsift.errors import TemplateError

MOST = 0.5
"""Share of the rows above which it is the template that is at fault, not the rows."""


def mostly_shown(results: Iterable[EncodedRow | SetAside], template: str) -> Iterator[EncodedRow | SetAside]:
    """The results as they come; raises TemplateError after the last where the template refused most of those it saw."""
    num_rows, refused = 0, 0
    first: SetAside | None = None
    for result in results:
        num_rows += not (isinstance(result, SetAside) and result.place)  # a row with one couldn't be read
        if isinstance(result, SetAside) and result.by_template:
            refused += 1
            first = first or result
        yield result
    if first is not None and refused > MOST * num_rows:
        raise TemplateError(
            f"the template {template} can't show {refused} of {num_rows} rows; the first, {first.source}/{first.id}: "
            f"{first.reason}; give encoding.template a Jinja file with {{% generation %}} marks around what the "
            "assistant says, or learn from the last turn alone (encoding.supervise: last), or leave such rows out"
        )
