"""Which cells a config asks for, and what config makes each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runs import tiny_run

from gradsift.comparison.plan import Cell, cell_config, cells
from gradsift.config import RunConfig, load_config


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


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        ({"methods": ["lesss"]}, "did you mean 'less'"),
        ({"methods": ["less", "less"]}, "less stands there twice"),
        ({"methods": [{"method": "less", "strategy": "tp"}]}, "did you mean 'top'"),
        ({"fractions": [5]}, "is no fraction of the pool"),
        ({"seeds": [0, 0]}, "seeds must differ"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, compare: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        load_config(tiny_run(tmp_path, Path("model"), compare=compare))
