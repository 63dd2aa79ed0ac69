"""The examples of docs/extending.md, run as they stand."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from runs import gradsift, small_pool, tiny_run, write_jsonl

from gradsift.baselines.methods import BASELINES
from gradsift.baselines.representations import REPRESENTATIONS
from gradsift.data.formats import FORMATS
from gradsift.data.source_settings import SourceConfig
from gradsift.data.sources import read_examples
from gradsift.selection.strategies import STRATEGIES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"


@pytest.fixture(autouse=True)
def _dicts_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the examples add to the dicts is gone after the test."""
    added = (
        (BASELINES, "shared_words"),
        (REPRESENTATIONS, "answer_mean"),
        (STRATEGIES, "weakest_first"),
        (FORMATS, "ticket"),
    )
    for names, name in added:
        monkeypatch.setitem(names, name, None)  # type: ignore[arg-type]
        del names[name]


def example(heading: str, folder: Path) -> Path:
    """The Python under a heading of the page, as a file."""
    section = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    path = folder / f"{heading.replace(' ', '_')}.py"
    path.write_text(code, encoding="utf-8")
    return path


def run_as_a_script(path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(path), run_name="__main__")
    return int(str(stopped.value.code))


def test_the_baseline_selects(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    (tmp_path / "target.jsonl").write_text(json.dumps({**small_pool()[5], "kind": "one"}) + "\n")
    arguments = ("run", str(config), "--until", "select", "select.method=shared_words", "select.overlap_ngrams=0")
    assert run_as_a_script(example("A baseline", tmp_path), monkeypatch, *arguments) == 0
    lines = (tmp_path / "run" / "selection" / "sums" / "shared_words.jsonl").read_text().splitlines()
    chosen = [small_pool().index(json.loads(line)) for line in lines]
    assert len(chosen) == 6
    assert chosen[:2] == [0, 5]  # the target's own words and no others


def test_the_baseline_that_uses_the_model_selects(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    arguments = ("run", str(config), "--until", "select", "select.method=answer_mean")
    assert run_as_a_script(example("A baseline that uses the model", tmp_path), monkeypatch, *arguments) == 0
    assert (tmp_path / "run" / "features" / "targets" / "sums" / "answer_mean" / "manifest.json").is_file()
    assert (tmp_path / "run" / "selection" / "sums" / "answer_mean.jsonl").read_bytes().count(b"\n") == 6


def test_the_strategy_is_known_to_the_config(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runpy.run_path(str(example("A strategy", tmp_path)))
    config = tiny_run(tmp_path, tiny_model_folder)
    overrides = ["select.method=bm25", "select.strategy=weakest_first"]
    assert gradsift("run", config, "--until", "select", *overrides) == 0


def test_the_format_is_recognised(tmp_path: Path) -> None:
    runpy.run_path(str(example("A row format", tmp_path)))
    path = write_jsonl(tmp_path / "pool.jsonl", [{"complaint": "It squeaks.", "resolution": "Oil it."}])
    (read,) = read_examples(SourceConfig(name="tickets", path=str(path)), seed=0)
    assert [message["content"] for message in read.messages] == ["It squeaks.", "Oil it."]
