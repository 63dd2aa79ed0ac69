"""`gradsift compare`: methods of selection, trained and evaluated side by side on the user's own targets."""

from __future__ import annotations

from gradsift.comparison.run import compare, finished_table

__all__ = [
    "compare",
    "finished_table",
]
