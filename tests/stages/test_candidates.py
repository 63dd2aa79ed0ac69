"""Gradients of candidates alone, through the command line: what is scored, added later, and not made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from runs import conversation, gradsift, stored_features, tiny_run, write_jsonl
from stores import stopped_after_a_shard

from gradsift.baselines import EMBEDDING, TOV, methods
from gradsift.machine.artifact import read_json

CANDIDATES = "features.candidates={method: bm25, fraction: 0.4}"
ALONE = "features.tokens_per_batch=1"
"""A row a batch, so that its feature has the same bits in any company."""
UNTIL_SELECT = ("--until", "select", ALONE, "select.strategy=top")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A folder with a config of two targets, and the run of all rows for the first."""
    folder = tmp_path_factory.mktemp("candidates")
    config = tiny_run(folder, tiny_model_folder)
    assert gradsift("run", config, *UNTIL_SELECT) == 0
    values = yaml.safe_load(config.read_text())
    more = write_jsonl(folder / "more.jsonl", [conversation("m0", "What is 21 and 1?", "It is 22.")])
    values["targets"].append({"name": "more", "path": str(more)})
    (folder / "two.yaml").write_text(yaml.safe_dump(values))
    return folder


@pytest.fixture
def begun(finished: Path, tmp_path: Path) -> Path:
    """A run folder with the pool, the first target and the warmup of that run, but no features."""
    for name in ("pool", "targets", "warmup"):
        shutil.copytree(finished / "run" / name, tmp_path / "run" / name)
    return tmp_path / "run"


@pytest.fixture
def run(finished: Path, begun: Path) -> Any:
    """The command line on it, up to the selection: with one target, or with two."""

    def command(*overrides: str, config: str = "config.yaml") -> int:
        return gradsift("run", finished / config, *UNTIL_SELECT, f"run_dir={begun}", *overrides)

    return command


def scores(run_folder: Path, target: str = "sums", method: str = "less") -> dict[str, float | None]:
    table = pq.read_table(run_folder / "scores" / target / f"{method}.parquet")
    return dict(zip(table["id"].to_pylist(), table["score"].to_pylist(), strict=True))


def best(run_folder: Path, target: str = "sums", count: int = 9) -> set[str]:
    """The rows that bm25 scores highest."""
    found = scores(run_folder, target, "bm25")
    return set(sorted(found, key=lambda row_id: (-float(found[row_id] or 0), row_id))[:count])


def alike(found: dict[str, float | None], expected: dict[str, float | None]) -> bool:
    """Whether the same rows have the same scores: products of float32 are rounded by where a row stands in a block."""
    return found == pytest.approx(expected, abs=1e-6)  # type: ignore[no-any-return]


def scored(run_folder: Path, target: str = "sums") -> set[str]:
    return {row_id for row_id, score in scores(run_folder, target).items() if score is not None}


def stores(run_folder: Path) -> list[Path]:
    return sorted((run_folder / "features" / "pool").glob("checkpoint-*"))


def shard_times(run_folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in run_folder.glob("features/**/shard-*")}


def test_the_best_rows_of_the_cheap_method_alone_have_features_and_scores(begun: Path, run: Any) -> None:
    assert run(CANDIDATES) == 0
    for store in stores(begun):
        assert set(stored_features(store)) == best(begun)
    assert scored(begun) == best(begun)
    table = pq.read_table(begun / "scores" / "sums" / "less.parquet")
    assert sum(pair == [None, None] for pair in table["subtask_scores"].to_pylist()) == 24 - 9
    facts = read_json(begun / "scores" / "sums" / "less.json")
    assert (facts["num_candidates"], facts["num_unselectable"]) == (9, 0)


def test_a_candidates_score_is_that_of_a_run_of_all_rows(finished: Path, begun: Path, run: Any) -> None:
    assert run(CANDIDATES) == 0
    whole, found = scores(finished / "run"), scores(begun)
    assert alike({row_id: found[row_id] for row_id in best(begun)}, {row_id: whole[row_id] for row_id in best(begun)})


def test_candidates_alone_are_selected_best_first(finished: Path, begun: Path, run: Any) -> None:
    assert run(CANDIDATES) == 0
    whole = scores(finished / "run")
    lines = (begun / "selection" / "sums" / "less.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == sorted(best(begun), key=lambda row_id: -whole[row_id])[:6]
    assert read_json(begun / "selection" / "sums" / "less.json")["num_candidates"] == 9


def test_fewer_candidates_than_rows_asked_for_are_said(
    begun: Path, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("features.candidates={method: bm25, fraction: 0.1}") == 0
    assert "6 rows asked for, only 2 can be selected" in capsys.readouterr().err


def test_a_later_target_adds_its_candidates_and_changes_nothing_else(begun: Path, run: Any) -> None:
    assert run(CANDIDATES) == 0
    before, selected = shard_times(begun), (begun / "selection" / "sums" / "less.json").stat().st_mtime_ns
    assert run(CANDIDATES, config="two.yaml") == 0
    assert best(begun, "more") - best(begun)
    for store in stores(begun):
        assert set(stored_features(store)) == best(begun) | best(begun, "more")
    after = shard_times(begun)
    assert after.items() >= before.items()
    assert (begun / "selection" / "sums" / "less.json").stat().st_mtime_ns == selected
    assert (scored(begun), scored(begun, "more")) == (best(begun), best(begun, "more"))


def test_targets_added_one_by_one_end_as_targets_begun_together(finished: Path, begun: Path, run: Any) -> None:
    assert run(CANDIDATES) == 0
    assert run(CANDIDATES, config="two.yaml") == 0
    together = begun.with_name("together")
    assert gradsift("run", finished / "two.yaml", *UNTIL_SELECT, f"run_dir={together}", CANDIDATES) == 0
    for target in ("sums", "more"):
        assert alike(scores(begun, target), scores(together, target))
        path = Path("selection", target, "less.jsonl")
        assert (begun / path).read_bytes() == (together / path).read_bytes()


def test_without_candidates_the_store_becomes_one_of_all_rows(finished: Path, begun: Path, run: Any) -> None:
    assert run(CANDIDATES) == 0
    before = shard_times(begun)
    assert run() == 0
    assert shard_times(begun).items() >= before.items()
    assert alike(scores(begun), scores(finished / "run"))
    path = Path("selection", "sums", "less.jsonl")
    assert (begun / path).read_bytes() == (finished / "run" / path).read_bytes()
    assert run(CANDIDATES) == 0
    assert scored(begun) == best(begun)


def test_a_store_of_all_rows_serves_any_candidates(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    before, whole = shard_times(tmp_path / "run"), read_json(finished / "run" / "selection" / "sums" / "less.json")
    arguments = (finished / "config.yaml", *UNTIL_SELECT, f"run_dir={tmp_path / 'run'}", CANDIDATES)
    capsys.readouterr()
    assert gradsift("run", *arguments, "select.name=screened") == 0
    captured = capsys.readouterr()
    rows = {row_id: row for row, row_id in enumerate(scores(tmp_path / "run"))}
    kept = len({rows[row_id] for row_id in best(tmp_path / "run")} & set(whole["rows"]))
    assert f"the candidates hold {100 * kept / 6:.1f} % of the 6 rows of less" in captured.err
    assert "9 pool rows are candidates" in captured.out
    assert shard_times(tmp_path / "run") == before
    assert scored(tmp_path / "run") == best(tmp_path / "run")


def test_a_store_without_candidates_lists_no_rows(finished: Path) -> None:
    assert not list((finished / "run").rglob("rows.json"))


@pytest.mark.parametrize("then", [(CANDIDATES,), ()], ids=["the same again", "then all rows"])
@pytest.mark.parametrize("first", [(CANDIDATES,), ()], ids=["candidates first", "all rows first"])
def test_stopped_between_shards_nothing_is_made_twice(
    finished: Path,
    begun: Path,
    run: Any,
    first: tuple[str, ...],
    then: tuple[str, ...],
) -> None:
    with stopped_after_a_shard():
        assert run(*first) == 130
    before = shard_times(begun)
    assert len(before) == 1
    assert run(*then) == 0
    assert shard_times(begun).items() >= before.items()
    whole = scores(finished / "run")
    kept = best(begun) if then else whole.keys()
    found = {row_id: score for row_id, score in scores(begun).items() if score is not None}
    assert alike(found, {row_id: whole[row_id] for row_id in whole if row_id in kept})


@pytest.mark.parametrize("method", [name for name in methods() if name not in ("less", "full", "bm25", EMBEDDING)])
def test_any_cheaper_method_picks_candidates(method: str, begun: Path, run: Any) -> None:
    assert run(f"features.candidates={{method: {method}, fraction: 0.5}}") == 0
    assert len(scored(begun)) == 12
    assert (begun / "tov").exists() == (method == TOV)


@pytest.mark.parametrize("method", ["less", "full", "rsd"])
def test_a_method_that_picks_no_candidates_is_refused(
    method: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradsift("run", finished / "config.yaml", f"features.candidates.method={method}") == 2
    assert "features.candidates.method" in capsys.readouterr().err


def test_scoring_before_the_candidates_have_features_is_refused(
    finished: Path, begun: Path, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(CANDIDATES) == 0
    more = "features.candidates={method: bm25, fraction: 0.8}"
    assert gradsift("score", finished / "config.yaml", f"run_dir={begun}", more) == 2
    assert "candidates for target sums: run `gradsift features` first" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_of_their_own_make_the_same_rows(begun: Path, run: Any) -> None:
    assert run(CANDIDATES) == 0
    alone = {store.name: stored_features(store) for store in stores(begun)}
    shutil.rmtree(begun / "features")
    assert run(CANDIDATES, "executor.workers=2", config="two.yaml") == 0
    for store in stores(begun):
        found = stored_features(store)
        assert all(torch.allclose(found[row_id], row, atol=1e-6) for row_id, row in alone[store.name].items())
        assert set(found) == best(begun) | best(begun, "more")
