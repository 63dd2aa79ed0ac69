"""Which cells a config asks for, and what config makes each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runs import tiny_run

from gradsift.comparison.plan import Cell, cell_config, cells
from gradsift.config import RunConfig, load_config
from gradsift.errors import ConfigError
from gradsift.selection import ArmConfig


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_config(tiny_run(tmp_path, Path("model"), compare={"methods": ["less", "random"], "seeds": [3, 5]}))


def changed(config: RunConfig, **compare: Any) -> RunConfig:
    settings = type(config.compare).model_validate({**config.compare.model_dump(), **compare})
    return config.model_copy(update={"compare": settings})


def test_a_cell_for_every_seed_target_and_method(config: RunConfig) -> None:
    found = [(cell.seed, cell.target, cell.name) for cell in cells(config)]
    assert found == [(3, "sums", "less"), (3, "sums", "random"), (5, "sums", "less"), (5, "sums", "random")]


def test_the_model_before_training_is_evaluated_once_where_something_is_held_out(config: RunConfig) -> None:
    target = config.targets[0].model_copy(update={"test_path": "held-out.jsonl"})
    held_out = config.model_copy(update={"targets": [target]})
    assert [cell.seed for cell in cells(held_out) if cell.arm is None] == [3]


def test_the_full_pool_has_no_budget(config: RunConfig) -> None:
    budgets = changed(config, methods=["random", "full"], seeds=[0], fractions=[0.1, 0.5])
    assert [cell.name for cell in cells(budgets)] == ["random-10pct", "random-50pct", "full"]


def test_another_model_is_trained_beside_the_one_that_selects(config: RunConfig) -> None:
    train = config.train.model_copy(update={"model": config.model})
    transfer = changed(config.model_copy(update={"train": train}), methods=["less"], seeds=[0])
    assert [cell.name for cell in cells(transfer)] == ["less", "less-transfer"]
    assert [cell.name for cell in cells(changed(transfer, own_model=False))] == ["less-transfer"]


def test_a_cell_selects_in_its_seeds_folder_under_its_own_name(config: RunConfig) -> None:
    arm = changed(config, methods=[{"method": "bm25", "strategy": "mean", "epochs": 1}]).compare.methods[0]
    own = cell_config(config, Cell(5, "sums", arm, fraction=0.5))
    assert (own.seed, own.run.path.name) == (5, "seed-5")
    assert (own.select.method, own.select.strategy, own.select.fraction) == ("bm25", "mean", 0.5)
    assert own.select.label == "bm25-mean-50pct"
    assert (own.train.epochs, config.train.epochs) == (1, 2)


def test_a_budget_in_rows_gives_way_to_a_fraction(config: RunConfig) -> None:
    select = config.select.model_copy(update={"fraction": None, "count": 3})
    own = cell_config(config.model_copy(update={"select": select}), Cell(0, "sums", config.compare.methods[0], 0.5))
    assert (own.select.fraction, own.select.count) == (0.5, None)


def test_every_seed_reads_the_same_sample_of_the_pool(config: RunConfig) -> None:
    assert cell_config(config, Cell(5, "sums", config.compare.methods[0])).pool[0].sample_seed == config.seed


# Arms with settings of their own


@pytest.mark.parametrize(
    ("arm", "label"),
    [
        ({"method": "less"}, "less"),
        ({"method": "less", "strategy": "top"}, "less-top"),
        ({"method": "less", "preset": "paper"}, "less-paper"),
        (
            {"method": "less", "normalize": "rank", "strategy": "top", "subtasks": "examples"},
            "less-top-rank-examples",
        ),
        ({"method": "bm25", "gumbel": 0.5}, "bm25-gumbel0.5"),
        ({"method": ["less", "rds+"], "normalize": "rank"}, "fused-less-rds+-rank"),
        ({"method": "less", "projection": {"dim": 64}}, "less-projection-dim64"),
        ({"method": "less", "preset": "paper", "name": "as-published"}, "as-published"),
    ],
)
def test_an_arm_is_called_by_what_it_has_of_its_own(arm: dict[str, Any], label: str) -> None:
    assert ArmConfig.model_validate(arm).label == label


def own_config(config: RunConfig, **arm: Any) -> RunConfig:
    return cell_config(config, Cell(5, "sums", ArmConfig.model_validate({"method": "less", **arm})))


def test_what_an_arm_leaves_out_is_the_runs(config: RunConfig) -> None:
    found, plain = own_config(config, normalize="rank", gumbel=0.5, adam="sgd"), own_config(config)
    assert (found.score.normalize, found.select.gumbel, found.features.adam) == ("rank", 0.5, "sgd")
    changed_back = {
        "run_dir": plain.run_dir,
        "score": found.score.model_copy(update={"normalize": "none"}),
        "select": found.select.model_copy(update={"gumbel": 0.0, "name": "less"}),
        "features": found.features.model_copy(update={"adam": "reference"}),
    }
    kept = plain.model_dump(exclude={"compare"})
    assert found.model_copy(update=changed_back).model_dump(exclude={"compare"}) == kept


@pytest.mark.parametrize("budget", [{"count": 3}, {"tokens": 50}, {"fraction": 0.5}])
def test_a_budget_of_an_arms_own_takes_the_place_of_the_runs(config: RunConfig, budget: dict[str, Any]) -> None:
    assert config.select.fraction == 0.25
    found = own_config(config, **budget).select.model_dump(include={"fraction", "count", "tokens"})
    assert found == {"fraction": None, "count": None, "tokens": None, **budget}


def test_an_arm_of_a_method_may_bear_its_name(config: RunConfig) -> None:
    named = changed(config, methods=[{"method": "random", "name": "random"}])
    assert [arm.label for arm in named.compare.methods] == ["random"]


def test_an_arms_preset_has_its_features_and_scores_and_the_runs_warmup(config: RunConfig) -> None:
    config = config.model_copy(update={"score": config.score.model_copy(update={"normalize": "rank"})})
    paper = own_config(config, preset="paper")
    assert (paper.features.projection.dim, paper.features.store_dtype) == (8192, "float16")
    assert (paper.score.normalize, paper.features.shard_rows) == ("none", config.features.shard_rows)
    assert paper.warmup == config.warmup
    ours = own_config(config, preset="gradsift", combine="mean")
    assert (ours.features.projection.dim, ours.features.store_dtype) == (131072, "int1")
    assert ours.score.combine == "mean"


@pytest.mark.parametrize(
    ("arm", "dtypes"),
    [
        ({"projection": {"dim": 32}}, ("float16", "float16")),
        ({"projection": {"dim": 32}, "store_dtype": "int8"}, ("int8", "int8")),
        ({"projection": {"seed": 1}}, ("float32", "float32")),
        ({"store_dtype": "int8"}, ("int8", "int8")),
        ({"store_dtype": "int8", "representation_dtype": "float32"}, ("int8", "float32")),
        ({"preset": "paper", "store_dtype": "int8"}, ("int8", "int8")),
        ({"preset": "gradsift", "store_dtype": "int8"}, ("int8", "float16")),
    ],
)
def test_a_projection_of_an_arms_own_is_stored_as_it_is(
    config: RunConfig, arm: dict[str, Any], dtypes: tuple[str, str | None]
) -> None:
    found = own_config(config, **arm).features
    assert (found.store_dtype, found.representation_dtype) == dtypes
    assert found.projection.kind == "sketch"


@pytest.mark.parametrize(
    ("arm", "folder"),
    [
        ({"epochs": 1}, "seed-5"),
        ({"gumbel": 0.5}, "seed-5"),
        ({"normalize": "none"}, "seed-5"),
        ({"normalize": "rank"}, "seed-5.less-rank"),
        ({"name": "mine", "adam": "sgd"}, "seed-5.mine"),
    ],
)
def test_features_or_scores_of_its_own_have_a_folder_of_their_own(
    config: RunConfig, arm: dict[str, Any], folder: str
) -> None:
    assert own_config(config, **arm).run.path.name == folder


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"normalise": "rank"}, "compare.methods: less-rank: unknown key normalise; did you mean 'normalize'"),
        ({"normalize": "ranks"}, "compare.methods: less-ranks: score.normalize: input should be 'none'"),
        ({"projection": {"dimm": 3}}, "unknown key features.projection.dimm; did you mean 'dim'"),
        ({"count": 3, "tokens": 5}, "give one of fraction, count and tokens"),
        ({"preset": "papers"}, "input should be 'gradsift' or 'paper'"),
        ({"name": "a/b"}, "'a/b' can't name files"),
        ({"name": "base"}, "base is what a cell of another kind is called"),
        ({"name": "less-5pct"}, "less-5pct is what a cell of another kind is called"),
        ({"name": "x" * 300}, "has 300 bytes"),
    ],
)
def test_an_arms_mistake_is_one_line(tmp_path: Path, arm: dict[str, Any], message: str) -> None:
    compare = {"methods": [{"method": "less", **arm}]}
    with pytest.raises(ConfigError) as raised:
        load_config(tiny_run(tmp_path, Path("model"), compare=compare))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        ({"methods": ["lesss"]}, "did you mean 'less'"),
        ({"methods": ["less", "less"]}, "less stands there twice"),
        ({"methods": [{"method": "less", "strategy": "tp"}]}, "did you mean 'top'"),
        ({"fractions": [5]}, "is no fraction of the pool"),
        ({"seeds": [0, 0]}, "seeds must differ"),
        ({"methods": ["less", {"method": "less", "name": "less"}]}, "less stands there twice"),
        ({"methods": [{"method": "bm25", "name": "random"}]}, "random is the name of a method that the arm isn't of"),
        ({"methods": ["less", {"method": "rds", "name": "less"}]}, "less is the name of a method that the arm isn't"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, compare: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        load_config(tiny_run(tmp_path, Path("model"), compare=compare))
