"""`gradsift compare` as a user calls it: what it writes, and going on where it was."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import TINY, conversation, gradsift, tiny_run, write_jsonl

from gradsift.comparison import run
from gradsift.comparison.plan import cells
from gradsift.config import load_config
from gradsift.machine.artifact import read_json, read_parquet

METHODS = ["less", "random", "rds", "full"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A finished comparison's folder; its config stands beside it."""
    folder = tmp_path_factory.mktemp("compared")
    config = config_of(folder, tiny_model_folder, {"methods": METHODS, "seeds": [0, 1], "fractions": [0.25]})
    assert gradsift("compare", config) == 0
    return folder


def config_of(folder: Path, model: Path, compare: dict[str, Any]) -> Path:
    """A tiny comparison with three held-out items."""
    held_out = [conversation(f"h{i}", f"How much is {i} and {i}?", f"It is {2 * i}.", kind="even") for i in range(3)]
    target = {
        "name": "sums",
        "path": str(folder / "target.jsonl"),
        "subtask_column": "kind",
        "test_path": str(write_jsonl(folder / "held-out.jsonl", held_out)),
    }
    return tiny_run(folder, model, targets=[target], compare=compare)


def comparison(compared: Path) -> Path:
    return compared / "run" / "comparison"


def test_every_method_has_its_loss_in_the_table(compared: Path) -> None:
    lines = (comparison(compared) / "comparison.md").read_text().splitlines()
    for label in ("base", "less-25pct", "random-25pct", "rds-25pct", "full"):
        row = next(line for line in lines if line.startswith(f"| {label} "))
        over_seeds = "" if label == "base" else r" \(\d\.\d{3}\)"
        assert re.match(rf"\| {label} +\| \d\.\d{{3}}{over_seeds} ", row)


def test_a_record_says_figures_and_costs(compared: Path) -> None:
    record = read_json(comparison(compared) / "cells" / "seed-0" / "sums" / "less-25pct.json")
    assert record["num_selected"] == 6
    assert record["answer_loss"] > 0
    assert record["selection"]["flops"] > record["training"]["flops"] > 0


def test_methods_that_read_texts_cost_no_operations(compared: Path) -> None:
    record = read_json(comparison(compared) / "cells" / "seed-0" / "sums" / "random-25pct.json")
    assert record["selection"]["flops"] == 0


def test_a_representation_costs_one_forward_pass_and_no_warmup(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = tiny_run(tmp_path, tiny_model_folder, compare={"methods": ["rds+", "loss"], "seeds": [0]})
    assert gradsift("compare", config) == 0
    cells = tmp_path / "run" / "comparison" / "cells" / "seed-0" / "sums"
    costs = [read_json(cells / f"{method}.json")["selection"]["flops"] for method in ("rds+", "loss")]
    assert costs[0] > costs[1] > 0  # the loss reads no target
    assert not (tmp_path / "run" / "comparison" / "seed-0" / "warmup").exists()


def test_methods_that_are_fused_cost_what_both_do(tmp_path: Path, tiny_model_folder: Path) -> None:
    methods = ["less", ["less", "rds+"], "rds+"]
    config = tiny_run(tmp_path, tiny_model_folder, compare={"methods": methods, "seeds": [0]})
    assert gradsift("compare", config) == 0
    cells = tmp_path / "run" / "comparison" / "cells" / "seed-0" / "sums"
    costs = {path.stem: read_json(path)["selection"]["flops"] for path in cells.glob("*.json")}
    assert costs["fused-less-rds+"] == costs["less"] + costs["rds+"]
    selection = tmp_path / "run" / "comparison" / "seed-0" / "selection" / "sums"
    assert len((selection / "fused-less-rds+.jsonl").read_text().splitlines()) == 6


def test_seeds_warm_up_on_different_rows_of_the_same_pool(compared: Path) -> None:
    manifests = [comparison(compared) / f"seed-{seed}" / "warmup" / "manifest.json" for seed in (0, 1)]
    first, second = (read_json(path)["rows"] for path in manifests)
    assert first != second
    assert (comparison(compared) / "seed-1" / "pool").resolve() == (compared / "run" / "pool").resolve()


def test_features_that_no_seed_changes_are_made_once(compared: Path) -> None:
    stores = [comparison(compared) / f"seed-{seed}" / "features" / "pool" / "rds" for seed in (0, 1)]
    assert {store.resolve() for store in stores} == {(compared / "run" / "features" / "pool" / "rds").resolve()}
    records = [read_json(comparison(compared) / "cells" / f"seed-{s}" / "sums" / "rds-25pct.json") for s in (0, 1)]
    assert records[0]["selection"]["flops"] == records[1]["selection"]["flops"] > 0


def test_targets_without_held_out_items_are_selected_and_trained_for(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = tiny_run(tmp_path, tiny_model_folder, compare={"methods": ["random", "length"], "seeds": [0]})
    assert gradsift("compare", config) == 0
    rows = (tmp_path / "run" / "comparison" / "comparison.md").read_text().splitlines()
    assert any(re.match(r"\| length +(\| – +){4}\| 6 ", row) for row in rows)


def test_the_environment_is_kept(compared: Path) -> None:
    assert "torch" in read_json(compared / "run" / "environment.json")["versions"]


def test_plots_are_drawn(compared: Path) -> None:
    found = sorted(path.stem for path in (comparison(compared) / "plots").iterdir())
    assert found == ["budgets", "overlap", "scores", "sources"]


def test_finished_cells_are_not_made_again(compared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = {path: path.stat().st_mtime_ns for path in (comparison(compared) / "cells").rglob("*.json")}
    assert gradsift("compare", compared / "config.yaml") == 0
    assert {path: path.stat().st_mtime_ns for path in records} == records
    assert "compare: 9 of 9 cells are done" in capsys.readouterr().err


def test_a_lost_record_is_made_from_what_is_there(compared: Path) -> None:
    path = comparison(compared) / "cells" / "seed-1" / "sums" / "random-25pct.json"
    before, model = read_json(path), comparison(compared) / "seed-1" / "model" / "sums" / "random-25pct"
    trained = (model / "adapter_model.safetensors").stat().st_mtime_ns
    path.unlink()
    assert gradsift("compare", compared / "config.yaml", "compare.seeds=[1]") == 0
    assert json.dumps(read_json(path)["answer_loss"]) == json.dumps(before["answer_loss"])
    assert (model / "adapter_model.safetensors").stat().st_mtime_ns == trained


def predictions_of(compared: Path, cell: str) -> Path:
    """A cell's predictions, of seed 0."""
    return comparison(compared) / "seed-0" / "evaluation" / "sums" / cell / "predictions.jsonl"


def test_a_cell_killed_while_it_is_made_again_with_other_settings_is_not_done(
    compared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions = predictions_of(compared, "base")
    before, command = predictions.read_bytes(), ("compare", compared / "config.yaml")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "_record", killed)
        assert gradsift(*command, "targets.0.metric=exact_match") == 130
    assert predictions.read_bytes() != before
    assert gradsift(*command) == 0
    assert predictions.read_bytes() == before


def test_a_cell_whose_predictions_were_cut_is_made_again(compared: Path) -> None:
    predictions = predictions_of(compared, "random-25pct")
    before = predictions.read_bytes()
    predictions.write_bytes(before[:-9])
    assert gradsift("compare", compared / "config.yaml") == 0
    assert predictions.read_bytes() == before


def test_the_dtype_of_representations_decides_a_cell_where_it_is_not_the_stores(compared: Path) -> None:
    config = load_config(compared / "config.yaml")
    alike, other = (f"features.representation_dtype={dtype}" for dtype in (config.features.store_dtype, "float16"))
    assert len(run.finished(load_config(compared / "config.yaml", [alike]))) == 9
    assert not run.finished(load_config(compared / "config.yaml", [other]))


def test_the_table_alone_does_not_say_that_a_cut_cell_is_made_again(
    compared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = predictions_of(compared, "random-25pct")
    before = predictions.read_bytes()
    predictions.write_bytes(before[:-9])
    assert gradsift("compare", compared / "config.yaml", "--table") == 0
    said = capsys.readouterr().err
    assert "predictions.jsonl is not what was written: it counts as not made" in said
    assert "made again" not in said
    predictions.write_bytes(before)


@pytest.mark.parametrize("content", ["{}", "[]", "", '{"inputs": 3}'])
def test_a_damaged_record_is_named(compared: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = comparison(compared) / "cells" / "seed-1" / "sums" / "random-25pct.json"
    before = path.read_bytes()
    path.write_text(content)
    assert gradsift("compare", compared / "config.yaml") == 2
    assert "random-25pct.json: is damaged" in capsys.readouterr().err
    path.write_bytes(before)


# Arms with settings of their own, and cells carried elsewhere

ARMS: list[Any] = [
    "less",
    "random",
    {"method": "less", "name": "small", "projection": {"dim": 16}},
    {"method": "less", "normalize": "zscore"},
    {"method": ["less", "rds"], "normalize": "rank"},
    {"name": "screened", "method": "less", "candidates": {"method": "rds", "fraction": 0.5}},
]


@pytest.fixture(scope="module")
def armed(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A finished comparison of arms with settings of their own."""
    folder = tmp_path_factory.mktemp("armed")
    assert gradsift("compare", config_of(folder, tiny_model_folder, {"methods": ARMS, "seeds": [0]})) == 0
    return folder


def normalized_scores(run: Path, method: str) -> str:
    return str(read_json(run / "scores" / "sums" / f"{method}.json")["settings"]["normalize"])


def test_every_arm_has_its_row(armed: Path) -> None:
    lines = (comparison(armed) / "comparison.md").read_text().splitlines()
    for label in ("less", "random", "small", "less-zscore", "fused-less-rds-rank", "screened"):
        assert any(line.startswith(f"| {label} ") for line in lines)


def test_an_arms_features_are_its_own_and_the_rest_is_the_seeds(armed: Path) -> None:
    small, seed, run_folder = comparison(armed) / "seed-0.small", comparison(armed) / "seed-0", armed / "run"
    assert (small / "warmup").samefile(seed / "warmup")
    assert (small / "pool").samefile(run_folder / "pool")
    assert not (small / "features").is_symlink()
    stores = [read_json(path)["meaning"] for path in (small / "features").rglob("manifest.json")]
    assert {store["projection"]["dim"] for store in stores} == {16}


def test_an_arm_with_scores_of_its_own_shares_the_features(armed: Path) -> None:
    scaled, seed = comparison(armed) / "seed-0.less-zscore", comparison(armed) / "seed-0"
    assert (scaled / "features").samefile(seed / "features")
    assert (normalized_scores(scaled, "less"), normalized_scores(seed, "less")) == ("zscore", "none")
    fused = comparison(armed) / "seed-0.fused-less-rds-rank"
    assert (fused / "features" / "pool" / "rds").samefile(armed / "run" / "features" / "pool" / "rds")


def test_an_arm_with_candidates_has_features_of_them_alone_and_shares_what_picks_them(armed: Path) -> None:
    screened = comparison(armed) / "seed-0.screened"
    assert read_json(screened / "scores" / "sums" / "less.json")["num_candidates"] == 12
    assert (screened / "features" / "pool" / "rds").samefile(armed / "run" / "features" / "pool" / "rds")
    costs = {
        name: read_json(comparison(armed) / "cells" / "seed-0" / "sums" / f"{name}.json")["selection"]["flops"]
        for name in ("less", "screened", "fused-less-rds-rank")
    }
    one_pass = costs["fused-less-rds-rank"] - costs["less"]  # of rds
    assert 0.4 * costs["less"] < costs["screened"] - one_pass < 0.9 * costs["less"]


def test_an_arms_cost_is_of_its_own_features_and_the_seeds_warmup(armed: Path) -> None:
    def known(folder: str) -> dict[str, float]:
        return read_json(comparison(armed) / folder / "seconds.json")  # type: ignore[no-any-return]

    record = read_json(comparison(armed) / "cells" / "seed-0" / "sums" / "small.json")
    own, seed = known("seed-0.small"), known("seed-0")
    pieces = own["features/less"] + own["score/sums/small"] + own["select/sums/small"] + seed["warmup"]
    assert record["selection"]["seconds"] == pytest.approx(pieces, abs=0.5)  # later cells look whether it is done
    assert "warmup" not in own
    assert "features/less" not in known("seed-0.less-zscore")


def test_an_arm_with_other_features_under_its_name_is_refused_before_anything_is_removed(
    armed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in (armed / "run").rglob("*") if path.suffix in (".json", ".yaml")}
    changed = "compare.methods=[{method: bm25}, {method: less, name: small, projection: {dim: 8}}]"
    assert gradsift("compare", armed / "config.yaml", changed) == 2
    said = capsys.readouterr().err
    assert "features.projection.dim was 16, now 8; give the arm another `name`, or set it back" in said
    now = {path: path.read_bytes() for path in before}
    own = (armed / "run" / "config.yaml", armed / "run" / "environment.json")
    assert [path for path in before if before[path] != now[path] and path not in own] == []
    assert not (comparison(armed) / "cells" / "seed-0" / "sums" / "bm25.json").exists()


def test_an_arm_whose_selection_changes_under_its_name_is_refused(
    armed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("compare", armed / "config.yaml")
    changed = "compare.methods=[{method: less, name: small, projection: {dim: 16}, count: 5}]"
    assert gradsift(*command, changed) == 2
    said = capsys.readouterr().err
    assert "was trained with another selection; delete it to train again, set it back, or use another name" in said
    assert gradsift(*command) == 0


def test_finished_arms_are_not_made_again(armed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gradsift("compare", armed / "config.yaml") == 0
    assert "compare: 7 of 7 cells are done" in capsys.readouterr().err


def carried(folder: Path, run_dir: Path) -> None:
    """Copy what docs/comparing.md names."""
    shutil.copytree(comparison(folder) / "cells", run_dir / "comparison" / "cells")
    shutil.copy(folder / "run" / "config.yaml", run_dir)
    for evaluation in comparison(folder).glob("seed-*/evaluation"):
        shutil.copytree(evaluation, run_dir / "comparison" / evaluation.parent.name / "evaluation")


def test_cells_carried_elsewhere_are_done_there(
    armed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    carried(armed, tmp_path)
    assert gradsift("compare", armed / "config.yaml", f"run_dir={tmp_path}") == 0
    assert "compare: 7 of 7 cells are done" in capsys.readouterr().err
    assert (tmp_path / "comparison" / "comparison.md").read_bytes() == (
        comparison(armed) / "comparison.md"
    ).read_bytes()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_table_alone_needs_neither_data_nor_models(
    armed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    carried(armed, tmp_path)
    config = yaml.safe_load((armed / "config.yaml").read_text())
    (tmp_path / "comparison" / "cells" / "seed-0" / "sums" / "random.json").unlink()
    for path in (armed / "pool.jsonl", Path(config["model"]["name_or_path"])):
        path.rename(path.with_name(f"{path.name}-away"))
    try:
        assert gradsift("compare", armed / "config.yaml", "--table", f"run_dir={tmp_path}") == 0
    finally:
        for path in (armed / "pool.jsonl", Path(config["model"]["name_or_path"])):
            path.with_name(f"{path.name}-away").rename(path)
    printed = capsys.readouterr()
    assert "compare: 6 of 7 cells are done" in printed.err
    assert "| small " in printed.out
    assert "| random " not in printed.out


def test_cells_of_other_settings_are_not_in_the_table(armed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (comparison(armed) / "comparison.md").read_bytes()
    assert gradsift("compare", armed / "config.yaml", "--table", "select.fraction=0.5") == 2
    assert "no cell is done with these settings" in capsys.readouterr().err
    assert (comparison(armed) / "comparison.md").read_bytes() == before


@pytest.mark.slow
def test_transfer_stands_in_columns_of_its_own(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = tiny_run(
        tmp_path,
        tiny_model_folder,
        compare={"methods": ["random"], "seeds": [0]},
        train={"model": {"name_or_path": str(tiny_model_folder), "dtype": "float32"}},
    )
    assert gradsift("compare", config) == 0
    text = (tmp_path / "run" / "comparison" / "comparison.md").read_text()
    assert f"## sums → {tiny_model_folder.name}" in text


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gradsift("compare", tiny_run(tmp_path, Path("model")), "compare.methods=[lss]") == 2
    assert "compare.methods" in capsys.readouterr().err


def test_tov_costs_two_forward_passes_and_a_small_training(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = tiny_run(tmp_path, tiny_model_folder, compare={"methods": ["loss", "tov"], "seeds": [0, 1]})
    assert gradsift("compare", config) == 0
    cells = tmp_path / "run" / "comparison" / "cells" / "seed-0" / "sums"
    one_pass, tov = (read_json(cells / f"{method}.json")["selection"]["flops"] for method in ("loss", "tov"))
    assert 2 * one_pass < tov < 3 * one_pass
    stores = [tmp_path / "run" / "comparison" / f"seed-{seed}" / "features" / "pool" for seed in (0, 1)]
    assert len({(store / "loss").resolve() for store in stores}) == 1
    assert len({(store / "tov").resolve() for store in stores}) == 2


def test_candidates_cost_what_picks_them_and_their_share_of_the_gradients(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    config = tiny_run(tmp_path, tiny_model_folder, compare={"methods": ["less", "rds"], "seeds": [0]})
    flops: list[dict[str, float]] = []
    for overrides in ([], ["features.candidates={method: rds, fraction: 0.25}"]):
        run_dir = tmp_path / str(len(flops))
        assert gradsift("compare", config, f"run_dir={run_dir}", *overrides) == 0
        cells = run_dir / "comparison" / "cells" / "seed-0" / "sums"
        flops.append({name: read_json(cells / f"{name}.json")["selection"]["flops"] for name in ("less", "rds")})
    whole, screened = flops
    assert screened["rds"] == whole["rds"]
    assert 2 * whole["rds"] < screened["less"] < whole["less"]


def test_an_arm_whose_scores_pick_other_candidates_has_their_gradients(tmp_path: Path, tiny_model_folder: Path) -> None:
    examples = [
        conversation("a", "Say it.", "Say it, say it.", kind="a"),
        conversation("b", "What is 3 and 3?", "It is 6.", kind="b"),
        conversation("c", "and 4 and 11", "What 4", kind="c"),
    ]
    target = write_jsonl(tmp_path / "three.jsonl", examples)
    config = tiny_run(
        tmp_path,
        tiny_model_folder,
        targets=[{"name": "sums", "path": str(target), "subtask_column": "kind"}],
        features={**TINY["features"], "candidates": {"method": "bm25", "fraction": 0.2}},
        compare={"methods": ["less", {"method": "less", "combine": "mean"}], "seeds": [0]},
    )
    assert gradsift("compare", config) == 0
    comparison_folder = tmp_path / "run" / "comparison"
    own, seed = comparison_folder / "seed-0.less-mean", comparison_folder / "seed-0"
    scored = [read_parquet(folder / "scores" / "sums" / "less.parquet", ["score"])["score"] for folder in (seed, own)]
    assert [len(score) - score.null_count for score in scored] == [4, 4]
    assert scored[0].is_valid() != scored[1].is_valid()
    assert (own / "features").samefile(seed / "features")
    cells = comparison_folder / "cells" / "seed-0" / "sums"
    before = {path: path.read_bytes() for path in cells.glob("*.json")}
    flops = [read_json(cells / f"{name}.json")["selection"]["flops"] for name in ("less", "less-mean")]
    assert flops[0] != flops[1]
    assert gradsift("compare", config) == 0
    assert {path: path.read_bytes() for path in before} == before


def test_settings_of_a_method_leave_the_cells_of_others_as_they_were(tmp_path: Path) -> None:
    def inputs(*overrides: str) -> dict[str, str]:
        compared = {"methods": ["less", "bm25", "tov"], "seeds": [0]}
        config = load_config(tiny_run(tmp_path, Path("model"), compare=compared), overrides)
        return {cell.label: run._inputs(config, cell) for cell in cells(config)}

    def changed(*overrides: str) -> set[str]:
        before, now = inputs(), inputs(*overrides)
        return {label for label in before if before[label] != now[label]}

    assert changed("baselines.tov.epochs=9") == {"tov"}
    assert changed("features.candidates={method: bm25}") == {"less"}
    assert changed("features.candidates={method: tov}", "baselines.tov.epochs=9") == {"less", "tov"}
    assert changed("warmup.epochs=9") == {"less", "bm25", "tov"}
