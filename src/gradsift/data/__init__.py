"""Rows in: where a pool's or target's rows are, how they are laid out, and the `Example`s that they give."""

from __future__ import annotations

from gradsift.data.example import Example, Message, said
from gradsift.data.formats import FORMATS, Format
from gradsift.data.source_settings import SourceConfig
from gradsift.data.sources import read_examples, selected_examples, selected_lines, source_fingerprint
from gradsift.data.turns import given
from gradsift.data.values import Fields

__all__ = [
    "FORMATS",
    "Example",
    "Fields",
    "Format",
    "Message",
    "SourceConfig",
    "given",
    "read_examples",
    "said",
    "selected_examples",
    "selected_lines",
    "source_fingerprint",
]
