"""The method `embedding` through the command line, with a stand-in for sentence-transformers that needs no model."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from runs import gradsift, stored_features, tiny_run

from gradsift.store.writer import StoreWriter

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


class LetterCounts:
    """Embeds a text as the counts of its letters and digits; remembers what it was asked for."""

    asked: list[str]

    def __init__(self, name: str, device: str) -> None:
        if name == "absent":
            raise OSError("absent is not a local folder\nand is not a valid model identifier")
        type(self).asked = []

    def encode(self, texts: list[str], **_: Any) -> torch.Tensor:
        self.asked.extend(texts)
        return torch.tensor([[text.lower().count(letter) for letter in CHARACTERS] for text in texts])


@pytest.fixture
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = LetterCounts  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


def select(config: Path, *overrides: str) -> int:
    return gradsift("run", config, "--until", "select", "select.method=embedding", *overrides)


@pytest.mark.usefixtures("_stand_in")
def test_rows_are_scored_by_their_mean_cosine_with_a_subtasks_texts(tmp_path: Path, tiny_model_folder: Path) -> None:
    assert select(tiny_run(tmp_path, tiny_model_folder)) == 0
    run = tmp_path / "run"
    pool = stored_features(run / "features" / "pool" / "embedding")
    target = stored_features(run / "features" / "targets" / "sums" / "embedding")
    table = pq.read_table(run / "scores" / "sums" / "embedding.parquet")
    for row_id, found in zip(table["id"].to_pylist(), table["subtask_scores"].to_pylist(), strict=True):
        cosines = [torch.cosine_similarity(pool[row_id], target[f"t{index}"], dim=0) for index in range(4)]
        expected = [float(cosines[0] + cosines[2]) / 2, float(cosines[1] + cosines[3]) / 2]
        assert found == pytest.approx(expected, abs=1e-5)
    assert (run / "selection" / "sums" / "embedding.jsonl").read_bytes().count(b"\n") == 6
    assert not (run / "warmup").exists()


@pytest.mark.usefixtures("_stand_in")
def test_embedding_goes_on_after_the_shards_that_are_there(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    write = StoreWriter.write

    def stopped_after_one(writer: StoreWriter, shard: int, features_RK: torch.Tensor) -> None:
        if shard == 1:
            raise KeyboardInterrupt
        write(writer, shard, features_RK)

    with monkeypatch.context() as patched:
        patched.setattr(StoreWriter, "write", stopped_after_one)
        assert select(config) == 130
    assert select(config) == 0
    assert len([text for text in LetterCounts.asked if text != "word"]) == 24 - 8 + 4


@pytest.mark.usefixtures("_stand_in")
def test_another_embedding_model_is_refused_in_a_run_folder_of_the_first(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert select(config) == 0
    capsys.readouterr()
    assert select(config, "baselines.embedding.model=other") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "embedder" in line
    assert "'other'" in line


@pytest.mark.usefixtures("_stand_in")
def test_a_model_that_cannot_be_loaded_is_told_in_a_line(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert select(tiny_run(tmp_path, tiny_model_folder), "baselines.embedding.model=absent") == 2
    assert "baselines.embedding.model: absent can't be loaded" in capsys.readouterr().err.splitlines()[-1]


def test_without_sentence_transformers_the_command_to_install_it_is_told(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert select(tiny_run(tmp_path, tiny_model_folder)) == 2
    assert "pip install gradsift[embedding]" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "override"),
    [
        ("run", "select.method=[less, embedding]"),
        ("run", "features.candidates={method: embedding}"),
        ("compare", "compare.methods=[less, embedding]"),
        ("compare", "compare.methods=[less, {method: less, candidates: {method: embedding}, name: screened}]"),
    ],
)
def test_that_is_told_before_any_training(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, override: str
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert gradsift(command, tiny_run(tmp_path, tiny_model_folder), override) == 2
    assert not [*(tmp_path / "run").rglob("warmup"), *(tmp_path / "run").rglob("cells")]


def test_what_needs_no_embeddings_needs_no_sentence_transformers(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    config = tiny_run(tmp_path, tiny_model_folder)
    assert gradsift("run", config, "--until", "encode", "select.method=embedding") == 0
