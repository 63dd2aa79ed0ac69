"""Tables in Markdown, for reports and the terminal."""

from __future__ import annotations

from collections.abc import Sequence


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, padded so that a terminal shows it as one."""
    widths = [max(len(row[column]) for row in [heading, *rows]) for column in range(len(heading))]
    divider = ["-" * max(3, width) for width in widths]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in [heading, divider, *rows])
    return [f"| {' | '.join(cells)} |" for cells in padded]
