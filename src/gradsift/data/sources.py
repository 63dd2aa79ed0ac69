"""Sources: where the rows of a pool or target are, and the `Example`s that they give, in file order.

A source is a file, a folder, files by a pattern, a saved or a published `datasets` table, or an entry of
LLaMA-Factory's. Rows are counted from 0, blank lines left out and rows that can't be read counted, before any limit
or sample: that position is an example's `row`, and joins it to the line that it came from.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from typing import Any, TypeVar

from gradsift.data.bad_rows import BadRow, BadRows
from gradsift.data.example import Example
from gradsift.data.opened import Opened, Place, open_source, placed
from gradsift.data.opening import open_container
from gradsift.data.source_settings import SourceConfig, SourceSettings, settings_of
from gradsift.data.values import shown
from gradsift.errors import DataError

Picked = TypeVar("Picked")


def read_rows(source: SourceConfig, seed: int) -> Iterator[Example | BadRow]:
    """What each row of a source gives, in file order: an example, or why it gives none.

    A sample is drawn with `seed`, or the source's own. Raises DataError where the container is broken or empty, where
    no format fits, and at the end where most rows are bad; with `on_error: refuse` at the first bad row, naming the
    file and the line or row. Two rows of one id are refused whatever it says: nothing tells which of them is meant, and
    half of a pool that was put together of two could go that way. Raises ConfigError where keys of the source don't
    go together.
    """
    opened = open_source(source)
    seen: dict[str, Place] = {}
    bad = BadRows(opened.label)
    seed = seed if source.sample_seed is None else source.sample_seed
    for row, item in _drawn(opened, opened.layout.settings, seed):
        bad.num_read += 1
        place = opened.place(row, item)
        try:
            example = opened.example(row, item)
        except DataError as error:
            if source.on_error == "refuse":
                raise placed(error, place) from error
            yield bad.count(BadRow(opened.id_of(row, item), str(source.name), row, shown(place), shown(error)))
            continue
        if example.id in seen:
            raise DataError(f"the id {example.id!r} stands twice: {seen[example.id]} and {place}")
        seen[example.id] = place
        yield example
    bad.require_few()
    if not bad.num_read:
        raise DataError("gives no conversation: none is left of its message trees", opened.label)


def read_examples(source: SourceConfig, seed: int) -> Iterator[Example]:
    """The examples of a source, in file order, without the rows that give none; raises as `read_rows` does."""
    return (row for row in read_rows(source, seed) if isinstance(row, Example))


def selected_lines(source: SourceConfig, rows: Collection[int]) -> dict[int, bytes]:
    """The JSON line of each of those rows, in the user's own schema and without its line end.

    A line of a JSONL file comes byte for byte, but for NaN and the infinities, which JSON lacks: they become null. The
    lines between aren't parsed. A row of another container is put as JSON (`json_text`), its columns in their order.
    A conversation out of a message tree has a line of its own: id, source, messages. Positions don't depend on
    samples or limits. Raises DataError where the source has no such row.
    """
    return _picked(source, rows, lambda opened, row, item: opened.line(row, item))


def selected_examples(source: SourceConfig, rows: Collection[int]) -> dict[int, Example]:
    """The example at each of those rows; those between aren't parsed. Raises DataError where there is no such row."""
    return _picked(source, rows, _example_at)


def _example_at(opened: Opened, row: int, item: Any) -> Example:
    try:
        return opened.example(row, item)
    except DataError as error:
        raise placed(error, opened.place(row, item)) from error


def _picked(
    source: SourceConfig, rows: Collection[int], pick: Callable[[Opened, int, Any], Picked]
) -> dict[int, Picked]:
    """What `pick` makes of each of those rows."""
    opened = open_source(source)
    wanted, picked = set(rows), {}
    for row, item in enumerate(opened.items()) if wanted else ():
        if row in wanted:
            picked[row] = pick(opened, row, item)
            if len(picked) == len(wanted):
                break
    absent = sorted(wanted - set(picked))
    if absent:
        raise DataError(f"has no row {absent[0]}", opened.label)
    return picked


def source_fingerprint(source: SourceConfig) -> str:
    """SHA-256 of the content, in hex: of one file, of the digests of several, of a hub dataset's fingerprint.

    Names of folders and times don't count; a LLaMA-Factory entry does, being a part of how rows are read.
    """
    settings = settings_of(source)
    digests = open_container(settings.location).digests()
    if settings.entry:
        digests.append(hashlib.sha256(json.dumps(settings.entry, sort_keys=True).encode()).hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _drawn(opened: Opened, settings: SourceSettings, seed: int) -> Iterator[tuple[int, Any]]:
    """(row, item) of the rows that the limit or the sample leaves, in order."""
    items = enumerate(opened.items())
    if settings.limit is not None:
        yield from islice(items, settings.limit)
    elif settings.sample is not None:
        num_rows = opened.count()
        drawn = set(random.Random(seed).sample(range(num_rows), min(settings.sample, num_rows)))
        yield from ((row, item) for row, item in items if row in drawn)
    else:
        yield from items
