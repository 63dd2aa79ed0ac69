"""Selections through the command line, on scores that need no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from runs import conversation, gradsift, small_pool, tiny_run, write_jsonl

from gradsift.data.example import Example
from gradsift.machine.artifact import fingerprint
from gradsift.machine.progress import Progress
from gradsift.machine.records import read_record, write_record
from gradsift.selection.strategies import STRATEGIES
from gradsift.stages.overlap import PoolOverlap

LONG = "Anna had nine red apples, gave four of them to Bert, and then ate two: how many has she now?"


def select(config: Path, *overrides: str) -> int:
    """Select by the longest answer."""
    return gradsift("run", config, "--until", "select", "select.method=length", *overrides)


def facts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "selection" / "sums" / "length.json").read_text())
    return found


def chosen(folder: Path) -> list[str]:
    lines = (folder / "run" / "selection" / "sums" / "length.jsonl").read_text().splitlines()
    return [json.loads(line)["id"] for line in lines]


def with_pool(folder: Path, model: Path, rows: list[dict[str, Any]]) -> Path:
    """A config whose pool is these rows, then the small pool."""
    config = tiny_run(folder, model)
    write_jsonl(folder / "pool.jsonl", [*rows, *small_pool()])
    return config


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_selects(tmp_path: Path, tiny_model_folder: Path, strategy: str) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert select(config, f"select.strategy={strategy}") == 0
    assert len(set(chosen(tmp_path))) == 6


def test_a_row_with_a_validation_example_is_kept_out_and_counted(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leak = conversation("leak", "How much is 1 and 1?", "It is 2. " * 20)
    config = with_pool(tmp_path, tiny_model_folder, [leak])
    assert select(config) == 0
    assert "leak" not in chosen(tmp_path)
    assert facts(tmp_path)["kept_out"] == {"overlap_ngrams": 1}
    assert "kept out for sums: 1 × text of its items" in capsys.readouterr().out
    overlap = json.loads((tmp_path / "run" / "targets" / "sums" / "overlap.json").read_text())
    assert (overlap["rows"], overlap["num_items"]) == ([0], 4)


def test_the_whole_pool_is_without_overlap_too(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = with_pool(tmp_path, tiny_model_folder, [conversation("leak", "How much is 1 and 1?", "It is 2.")])
    assert gradsift("run", config, "--until", "select", "select.method=full") == 0
    lines = (tmp_path / "run" / "selection" / "sums" / "full.jsonl").read_text().splitlines()
    assert len(lines) == 24


def test_overlap_found_once_serves_every_method(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leak = conversation("leak", "How much is 1 and 1?", "It is 2. " * 20)
    config = with_pool(tmp_path, tiny_model_folder, [leak])
    assert select(config) == 0
    monkeypatch.setattr(PoolOverlap, "_read", None)
    assert select(config, "select.strategy=mean") == 0
    assert "leak" not in chosen(tmp_path)


def test_the_pool_is_read_once_for_all_new_targets(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leak = conversation("leak", "How much is 1 and 1?", "It is 2. " * 20)
    config = with_pool(tmp_path, tiny_model_folder, [leak])
    values = yaml.safe_load(config.read_text())
    other = write_jsonl(tmp_path / "other.jsonl", [conversation("o", LONG, "Three.")])
    values["targets"].append({"name": "other", "path": str(other)})
    config.write_text(yaml.safe_dump(values, sort_keys=False))
    passes, read = [], PoolOverlap._read

    def counted(overlap: PoolOverlap, progress: Progress) -> Iterator[Example]:
        passes.append(progress.label)
        return read(overlap, progress)

    monkeypatch.setattr(PoolOverlap, "_read", counted)

    assert select(config) == 0

    assert passes == ["overlap sums, other"]
    found = [
        json.loads((tmp_path / "run" / "targets" / name / "overlap.json").read_text())["rows"]
        for name in ("sums", "other")
    ]
    assert found == [[0], []]


def test_a_row_with_a_held_out_item_is_kept_out(tmp_path: Path, tiny_model_folder: Path) -> None:
    leak = conversation("leak", f"Please: {LONG}", "She has three apples, and that is all there is to say.")
    config = with_pool(tmp_path, tiny_model_folder, [leak])
    test_path = write_jsonl(tmp_path / "test.jsonl", [conversation("q", LONG, "3", kind="even")])
    assert select(config) == 0
    assert chosen(tmp_path)[0] == "leak"
    assert select(config, f"targets.sums.test_path={test_path}") == 0
    assert "leak" not in chosen(tmp_path)


def test_overlap_is_not_looked_for_where_it_is_turned_off(tmp_path: Path, tiny_model_folder: Path) -> None:
    leak = conversation("leak", "How much is 1 and 1?", "It is 2. " * 20)
    config = with_pool(tmp_path, tiny_model_folder, [leak])
    assert select(config, "select.overlap_ngrams=0") == 0
    assert chosen(tmp_path)[0] == "leak"
    assert not (tmp_path / "run" / "targets" / "sums" / "overlap.json").exists()


def test_a_system_prompt_that_pool_and_target_share_is_no_overlap(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    for name in ("pool.jsonl", "target.jsonl"):
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for row in rows:
            row["messages"].insert(0, {"role": "system", "content": LONG})
        write_jsonl(tmp_path / name, rows[:24] if name == "pool.jsonl" else rows[:1])
    assert select(config, "encoding.max_length=512") == 0
    assert facts(tmp_path)["kept_out"] == {}


def test_held_out_items_that_cannot_be_read_are_said_not_to_count(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert select(config, f"targets.sums.test_path={tmp_path / 'none.jsonl'}") == 0
    assert "compared with its validation examples alone" in capsys.readouterr().err


def test_a_pool_of_nothing_but_overlap_is_refused_with_the_reason(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    write_jsonl(tmp_path / "pool.jsonl", [conversation("leak", "How much is 1 and 1?", "It is 2.")])
    assert select(config) == 2
    assert "1 were kept out by select.overlap_ngrams" in capsys.readouterr().err


def test_the_first_of_equal_rows_is_chosen(tmp_path: Path, tiny_model_folder: Path) -> None:
    twins = [conversation(name, "Who is it?", "A long answer, the same for both.") for name in ("twin-b", "twin-a")]
    config = with_pool(tmp_path, tiny_model_folder, twins)
    assert select(config, "select.fraction=0.12") == 0
    assert chosen(tmp_path)[:2] == ["twin-a", "twin-b"]
    assert select(config, "select.fraction=0.12", "select.deduplicate=exact") == 0
    assert chosen(tmp_path)[0] == "twin-a"
    assert "twin-b" not in chosen(tmp_path)
    assert facts(tmp_path)["kept_out"] == {"deduplicate": 1}
    assert len(chosen(tmp_path)) == 3


def test_a_source_gives_no_more_than_its_most(tmp_path: Path, tiny_model_folder: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", [conversation(f"o{i}", f"Say {i}.", "Yes, " * 9) for i in range(9)])
    config = tiny_run(tmp_path, tiny_model_folder)
    pool = f'[{{name: pool, path: "{tmp_path / "pool.jsonl"}"}}, {{name: other, path: "{other}"}}]'
    assert select(config, f"pool={pool}", "select.fraction=0.25", "select.per_source_max=0.5") == 0
    assert facts(tmp_path)["per_source"] == {"other": 4, "pool": 4}


def test_a_draw_follows_the_seed_of_the_run(tmp_path: Path, tiny_model_folder: Path) -> None:
    drawn = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / folder).mkdir()
        config = tiny_run(tmp_path / folder, tiny_model_folder)
        assert select(config, "select.gumbel=5", f"seed={seed}") == 0
        drawn.append(chosen(tmp_path / folder))
    assert drawn[0] == drawn[1] != drawn[2]


def scores_table(
    folder: Path, subtask_scores: list[list[float]], combine: Callable[[list[float]], float] = max
) -> None:
    """Put these scores of three subtasks in the place of those that were written."""
    path = folder / "run" / "scores" / "sums" / "length.parquet"
    table = pq.read_table(path)
    best = [["one", "two", "three"][scores.index(max(scores))] for scores in subtask_scores]
    columns = {
        "score": pa.array([combine(scores) for scores in subtask_scores], pa.float32()),
        "subtask_scores": pa.array(subtask_scores, pa.list_(pa.float32())),
        "best_subtask": pa.array(best),
    }
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, path)
    described = path.with_suffix(".json")
    write_record(described, read_record(described).facts, [path])


@pytest.mark.parametrize(
    ("strategy", "share", "warned"), [("top", 5, True), ("top", 3, False), ("round_robin", 5, False)]
)
def test_one_subtask_with_most_of_the_rows_is_worth_a_word(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str], strategy: str, share: int, warned: bool
) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert gradsift("run", config, "--until", "score", "select.method=length") == 0
    rows = pq.read_table(tmp_path / "run" / "scores" / "sums" / "length.parquet").num_rows
    best = [[9.0, 1.0, 0.0]] * share + [[0.0, 1.0, 8.0]] * (6 - share) + [[0.0, 1.0, 0.5]] * (rows - 6)
    scores_table(tmp_path, best)
    assert gradsift("select", config, "select.method=length", f"select.strategy={strategy}") == 0
    message = f"{share} of 6 rows are chosen for one alone, one of 3 subtasks"
    assert (message in capsys.readouterr().err) is warned
    assert sum(facts(tmp_path)["per_subtask"].values()) == 6


def test_rows_chosen_by_the_mean_are_not_one_subtasks(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert gradsift("run", config, "--until", "score", "select.method=length") == 0
    scores_table(tmp_path, [[9.0, 1.0, 0.0]] * 24, combine=fmean)
    assert gradsift("select", config, "select.method=length", "select.strategy=top") == 0
    assert "alone" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("score.combine=mean",), "depends on score.combine=mean\n"),
        (("score.combine=mean", "score.normalize=rank"), "depends on score.combine=mean and score.normalize=rank\n"),
        (("score.normalize=zscore",), "depends on score.normalize=zscore\n"),
        (("score.normalize=zscore", "select.gumbel=0.1"), None),
        (("score.normalize=zscore", "select.strategy=top"), None),
        ((), None),
    ],
)
def test_scores_settings_that_turns_do_not_see_are_named(
    tmp_path: Path,
    tiny_model_folder: Path,
    capsys: pytest.CaptureFixture[str],
    overrides: tuple[str, ...],
    said: str | None,
) -> None:
    by_turns = [] if "select.strategy=top" in overrides else ["select.strategy=round_robin"]
    assert select(tiny_run(tmp_path, tiny_model_folder), *by_turns, *overrides) == 0
    log = capsys.readouterr().err
    assert ("by turns" in log) == (said is not None)
    assert said is None or said in log


def test_scores_that_know_no_subtasks_serve_none(tmp_path: Path, tiny_model_folder: Path) -> None:
    assert select(tiny_run(tmp_path, tiny_model_folder)) == 0
    assert facts(tmp_path)["per_subtask"] == {}


def fuse(config: Path, *overrides: str) -> int:
    return gradsift("run", config, "--until", "select", "select.method=[length,random]", *overrides)


def test_several_methods_score_and_are_fused(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert fuse(config, "select.fraction=1.0", "select.overlap_ngrams=0") == 0
    run = tmp_path / "run"
    scores = {name: pq.read_table(run / "scores" / "sums" / f"{name}.parquet") for name in ("length", "random")}
    orders = []
    for table in scores.values():
        ids, values = table["id"].to_pylist(), table["score"].to_pylist()
        orders.append(sorted(ids, key=lambda name, i=ids, v=values: (-v[i.index(name)], name)))
    found = {name: sum(1 / (61 + order.index(name)) for order in orders) for name in orders[0]}
    expected = sorted(orders[0], key=lambda name: (-found[name], orders[0].index(name)))
    lines = (run / "selection" / "sums" / "fused-length-random.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == expected


def test_a_fused_selection_is_made_again_where_one_methods_scores_are(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert fuse(config) == 0
    described = tmp_path / "run" / "selection" / "sums" / "fused-length-random.json"
    before = described.stat().st_mtime_ns
    assert fuse(config) == 0
    assert described.stat().st_mtime_ns == before
    assert fuse(config, "score.combine=mean") == 0
    assert described.stat().st_mtime_ns != before


def test_a_random_share_is_counted_and_follows_the_seed(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert select(config) == 0
    best = chosen(tmp_path)
    assert facts(tmp_path)["num_random"] == 0
    assert select(config, "select.random_share=0.5") == 0
    assert facts(tmp_path)["num_random"] == 3
    mixed = chosen(tmp_path)
    assert mixed[:3] == best[:3]
    assert mixed[3:] != best[3:]
    assert "the last 3 of 6 rows at random" in capsys.readouterr().out
    assert select(config, "select.random_share=0.5", "seed=1", f"run_dir={tmp_path / 'other'}") == 0
    other = (tmp_path / "other" / "selection" / "sums" / "length.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in other][3:] != mixed[3:]


def test_the_draw_leaves_out_what_overlaps_or_is_alike(tmp_path: Path, tiny_model_folder: Path) -> None:
    leak = conversation("leak", "How much is 1 and 1?", "It is 2. " * 20)
    twins = [conversation(f"twin-{i}", "Same?", "Same.") for i in range(5)]
    config = with_pool(tmp_path, tiny_model_folder, [leak, *twins])
    assert select(config, "select.fraction=1.0", "select.random_share=0.9", "select.deduplicate=exact") == 0
    found = chosen(tmp_path)
    assert "leak" not in found
    assert sum(name.startswith("twin") for name in found) == 1
    assert len(found) == len(set(found)) == 25


def test_a_selection_made_before_the_key_stays(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert select(config) == 0
    score = json.loads((tmp_path / "run" / "scores" / "sums" / "length.json").read_text())["inputs"]
    overlap = json.loads((tmp_path / "run" / "targets" / "sums" / "overlap.json").read_text())["inputs"]
    before = {
        **{"method": "length", "strategy": None, "fraction": 0.25, "count": None, "tokens": None, "gumbel": 0.0},
        **{"per_source_max": None, "deduplicate": "none", "near_threshold": 0.8, "overlap_ngrams": 13},
    }
    assert facts(tmp_path)["inputs"] == fingerprint([before, score, None, overlap])
