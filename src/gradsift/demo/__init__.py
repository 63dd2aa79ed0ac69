"""`gradsift demo`: the whole method on a small model and pool that come with the package."""

from __future__ import annotations

from gradsift.demo.run import demo, named_targets

__all__ = [
    "demo",
    "named_targets",
]
