"""The select stage: the best rows, written in the user's own schema."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from gradsift.artifact import atomic_open, file_sha256, fingerprint, read_json, write_json
from gradsift.corpus import Corpus
from gradsift.errors import DataError
from gradsift.runfolder import RunFolder
from gradsift.selecting import SelectConfig, ranking, select_top, wanted_count
from gradsift.sources import SourceConfig, selected_lines
from gradsift.stages.score import read_scores

logger = logging.getLogger(__name__)


def select(run: RunFolder, sources: Sequence[SourceConfig], target: str, config: SelectConfig, seed: int) -> None:
    """Write the rows chosen for a target, best first, unless they are there already."""
    table, scores = read_scores(run, target)
    inputs = fingerprint([config.model_dump(), scores["inputs"], seed])
    path = run.selection(target)
    described = path.with_suffix(".json")
    if described.is_file() and path.is_file() and read_json(described)["inputs"] == inputs:
        logger.info("select %s: done before", target)
        return
    corpus = Corpus(run.pool)
    chosen = _chosen(table, corpus.num_read, config)
    if not len(chosen):
        raise DataError(f"no row can be selected for target {target}: no score is a number", run.scores(target))
    lines = _lines(corpus, sources, chosen, seed)
    with atomic_open(path) as file:
        file.writelines(line + b"\n" for line in lines)
    facts = {
        "target": target,
        "settings": config.model_dump(),
        "num_selected": len(chosen),
        "per_source": dict(sorted(Counter(table.take(chosen)["source"].to_pylist()).items())),
        "num_tokens": int(np.sum(table["num_tokens"].to_numpy()[chosen])),
        "sha256": file_sha256(path),
        "inputs": inputs,
    }
    write_json(described, facts)


def _chosen(table: pa.Table, num_read: int, config: SelectConfig) -> Any:
    """Positions of the chosen rows in the table, best first."""
    ranked = ranking(table["score"].to_numpy().astype(np.float64), table["id"].to_pylist(), table["source"].to_pylist())
    if config.tokens is None and len(ranked) < wanted_count(num_read, config):
        logger.warning(
            "select: %d rows asked for, only %d can be selected", wanted_count(num_read, config), len(ranked)
        )
    return select_top(ranked, table["num_tokens"].to_numpy(), num_read, config)


def _lines(corpus: Corpus, sources: Sequence[SourceConfig], chosen: Any, seed: int) -> list[bytes]:
    """The chosen rows as the user wrote them; the encode stage has checked that the files are as they were."""
    table = corpus.table(["source", "source_row"]).take(chosen)
    keys = list(zip(table["source"].to_pylist(), table["source_row"].to_pylist(), strict=True))
    lines: dict[str, Mapping[int, bytes]] = {}
    for source in sources:
        rows = [row for name, row in keys if name == source.name]
        if rows:
            lines[str(source.name)] = selected_lines(source, seed, rows)
    return [lines[source][row] for source, row in keys]
