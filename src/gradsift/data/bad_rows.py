"""Rows that can't be read as an example: why, where they stand, and when they are too many to go on without."""

from __future__ import annotations

from dataclasses import dataclass

from gradsift.errors import DataError

MOST = 0.5
"""Share of a source's rows above which it isn't what the config says, rather than a source with some bad rows."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row of a source that gives no example. It keeps its position, which other rows are counted by."""

    id: str
    """The user's id where it can be read, else the row's position."""
    source: str
    row: int
    place: str
    """File and line, or row."""
    reason: str


class BadRows:
    """Those of one source, counted; `num_read` are all its rows."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._first: BadRow | None = None
        self._count = self.num_read = 0

    def count(self, row: BadRow) -> BadRow:
        """The row, once it is counted."""
        self._first = self._first or row
        self._count += 1
        return row

    def require_few(self) -> None:
        """Raises DataError with the first of them where they are more than MOST of the rows that were read."""
        if self._first is not None and self._count > MOST * self.num_read:
            raise DataError(
                f"{self._count:,} of {self.num_read:,} rows can't be read, which is most of them; the first is "
                f"{self._first.place}: {self._first.reason}",
                self._label,
            )
