"""Encoded rows come back as they were written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gradsift.encoding.corpus import MAX_REASONS, ROW_GROUP, Corpus, write_corpus
from gradsift.encoding.encoder import EncodedRow, SetAside


def row(index: int, label: int = 3) -> EncodedRow:
    ids = np.arange(index % 7 + 2, dtype=np.int32)
    return EncodedRow(f"id-{index}", "pool", index, "part", ids, np.full(len(ids), label, np.int32))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    results = [row(index) for index in range(ROW_GROUP + 10)]
    return write_corpus(tmp_path / "pool", [SetAside("gone", "pool", 0, "empty"), *results], {"fact": 1})


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (ROW_GROUP - 2, ROW_GROUP + 3), (ROW_GROUP, ROW_GROUP + 10)])
def test_any_stretch_of_rows_comes_back(corpus: Corpus, start: int, stop: int) -> None:
    found = corpus.rows(start, stop)
    assert [item.id for item in found] == [f"id-{index}" for index in range(start, stop)]
    for item, index in zip(found, range(start, stop), strict=True):
        assert np.array_equal(item.input_ids, row(index).input_ids)
        assert np.array_equal(item.labels, row(index).labels)


@pytest.mark.parametrize("positions", [[], [ROW_GROUP + 4, 3, ROW_GROUP - 1, 5], range(ROW_GROUP - 3, ROW_GROUP + 2)])
def test_rows_come_back_in_the_order_asked_for(corpus: Corpus, positions: Sequence[int]) -> None:
    found = corpus.rows_at(positions)
    assert [item.id for item in found] == [f"id-{index}" for index in positions]
    assert all(np.array_equal(a.labels, row(b).labels) for a, b in zip(found, positions, strict=True))


def test_row_counts_the_rows_set_aside_before_it(corpus: Corpus) -> None:
    assert corpus.column("row")[:3] == [1, 2, 3]
    assert corpus.column("source_row")[:3] == [0, 1, 2]


def test_set_aside_rows_are_listed_and_counted(corpus: Corpus) -> None:
    listed = [json.loads(line) for line in (corpus.folder / "set_aside.jsonl").read_text().splitlines()]
    assert listed == [{"id": "gone", "source": "pool", "row": 0, "reason": "empty"}]
    assert (corpus.num_read, corpus.num_rows, corpus.manifest["set_aside"]) == (
        ROW_GROUP + 11,
        ROW_GROUP + 10,
        {"empty": 1},
    )


def test_row_that_could_not_be_read_is_listed_with_its_place(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a", [SetAside("x", "pool", 0, "is null", "pool.jsonl, line 1"), row(1)], {})
    assert json.loads((corpus.folder / "set_aside.jsonl").read_text())["place"] == "pool.jsonl, line 1"


def test_manifest_counts_the_most_common_reasons_and_the_rest_together(tmp_path: Path) -> None:
    reasons = [*(["often"] * 3), *(f"column {index}" for index in range(MAX_REASONS + 4))]
    corpus = write_corpus(tmp_path / "a", [SetAside("x", "pool", 0, reason) for reason in reasons], {})
    counts = corpus.manifest["set_aside"]
    assert (counts["often"], counts["other reasons"]) == (3, 5)
    assert sum(counts.values()) == len(reasons)


def test_rows_without_their_beginning_are_named(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a", [row(1), replace(row(2), lost_beginning=True)], {})
    assert corpus.manifest["lost_beginning"] == ["id-2"]


def test_fingerprint_follows_the_labels(tmp_path: Path) -> None:
    first = write_corpus(tmp_path / "a", [row(1)], {})
    same = write_corpus(tmp_path / "b", [row(1)], {})
    other = write_corpus(tmp_path / "c", [replace(row(1), labels=row(1, label=4).labels)], {})
    assert first.manifest["fingerprint"] == same.manifest["fingerprint"] != other.manifest["fingerprint"]
