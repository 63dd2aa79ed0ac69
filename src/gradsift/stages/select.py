"""The select stage: the best rows, written in the user's own schema."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from gradsift.artifact import atomic_open, file_sha256, fingerprint, read_json, write_json
from gradsift.corpus import Corpus
from gradsift.data import Example
from gradsift.errors import DataError
from gradsift.runfolder import RunFolder
from gradsift.selecting import SelectConfig, ranking, select_top, wanted_count
from gradsift.source_settings import SourceConfig
from gradsift.sources import selected_examples, selected_lines
from gradsift.stages.score import read_scores

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


def select(run: RunFolder, sources: Sequence[SourceConfig], target: str, config: SelectConfig) -> None:
    """Write the rows chosen for a target, best first, unless they are there already."""
    table, scores = read_scores(run, target, config.method)
    inputs = fingerprint([config.model_dump(), scores["inputs"]])
    path = run.selection(target, config.method)
    described = path.with_suffix(".json")
    if described.is_file() and path.is_file() and read_json(described)["inputs"] == inputs:
        logger.info("select %s: done before", target)
        return
    corpus = Corpus(run.pool)
    chosen = _chosen(table, corpus.num_read, config)
    if not len(chosen):
        raise DataError(f"no row can be selected for target {target}: no score is a number", run.scores(target))
    keys = _keys(corpus, chosen)
    lines = _gathered(sources, keys, selected_lines)
    with atomic_open(path) as file:
        file.writelines(line + b"\n" for line in lines)
    facts = {
        "target": target,
        "settings": config.model_dump(),
        "num_selected": len(chosen),
        "per_source": dict(sorted(Counter(name for name, _ in keys).items())),
        "num_tokens": int(np.sum(table["num_tokens"].to_numpy()[chosen])),
        "sha256": file_sha256(path),
        "inputs": inputs,
        "rows": table["row"].to_numpy()[chosen].tolist(),
    }
    write_json(described, facts)


def _chosen(table: pa.Table, num_read: int, config: SelectConfig) -> Any:
    """Positions of the chosen rows in the table, best first."""
    ranked = ranking(table["score"].to_numpy().astype(np.float64), table["id"].to_pylist(), table["source"].to_pylist())
    if config.method != "full" and config.tokens is None and len(ranked) < wanted_count(num_read, config):
        logger.warning(
            "select: %d rows asked for, only %d can be selected", wanted_count(num_read, config), len(ranked)
        )
    return select_top(ranked, table["num_tokens"].to_numpy(), num_read, config)


def _keys(corpus: Corpus, chosen: Any) -> list[tuple[str, int]]:
    """(source, position in it) of the rows at these positions in the corpus."""
    table = corpus.table(["source", "source_row"]).take(chosen)
    return list(zip(table["source"].to_pylist(), table["source_row"].to_pylist(), strict=True))


def _gathered(
    sources: Sequence[SourceConfig],
    keys: Sequence[tuple[str, int]],
    read: Callable[[SourceConfig, Collection[int]], Mapping[int, Item]],
) -> list[Item]:
    """What `read` gives of the keys' rows, in their order; the encode stage has checked that the files are as they
    were."""
    found: dict[str, Mapping[int, Item]] = {}
    for source in sources:
        rows = [row for name, row in keys if name == source.name]
        if rows:
            found[str(source.name)] = read(source, rows)
    return [found[source][row] for source, row in keys]


def read_selection(run: RunFolder, target: str, method: str) -> Mapping[str, Any]:
    """What a selection was made from, and its rows' positions in the pool. Raises DataError where there is none, or
    where the file isn't the one that was written."""
    path = run.selection(target, method)
    described = path.with_suffix(".json")
    if not (path.is_file() and described.is_file()):
        raise DataError(f"there is no selection for target {target}: run `gradsift select` first", path)
    facts: Mapping[str, Any] = read_json(described)
    if file_sha256(path) != facts["sha256"]:
        raise DataError(
            "was changed by hand: name it in train.data to train on it, or delete it to select again",
            path,
        )
    return facts


def selection_examples(run: RunFolder, sources: Sequence[SourceConfig], target: str, method: str) -> list[Example]:
    """The chosen rows as examples, best first."""
    corpus = Corpus(run.pool)
    position = {row: index for index, row in enumerate(corpus.column("row"))}
    chosen = [position[row] for row in read_selection(run, target, method)["rows"]]
    return _gathered(sources, _keys(corpus, chosen), selected_examples)
