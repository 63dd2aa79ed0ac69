"""Rows in: where a pool's or target's rows are, how they are laid out, and the `Example`s that they give."""

from __future__ import annotations

from gradsift.data.bad_rows import BadRow
from gradsift.data.example import Example, Message, said
from gradsift.data.formats import FORMATS, Format
from gradsift.data.jsontext import parsed_json
from gradsift.data.source_settings import MAX_NAME, SourceConfig
from gradsift.data.sources import read_examples, read_rows, selected_examples, selected_lines, source_fingerprint
from gradsift.data.turns import given
from gradsift.data.values import Fields

__all__ = [
    "FORMATS",
    "MAX_NAME",
    "BadRow",
    "Example",
    "Fields",
    "Format",
    "Message",
    "SourceConfig",
    "given",
    "parsed_json",
    "read_examples",
    "read_rows",
    "said",
    "selected_examples",
    "selected_lines",
    "source_fingerprint",
]
