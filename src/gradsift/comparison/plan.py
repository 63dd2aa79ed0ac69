"""The cells of a comparison: a seed, a target, a way to select, a budget and a model to train; each one's config."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gradsift.config import RunConfig, arm_config
from gradsift.machine import RunFolder
from gradsift.selection import ArmConfig, SelectConfig
from gradsift.stages import BASE, TrainConfig
from gradsift.tasks import TargetConfig


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation; without an arm, the evaluation of the model before training."""

    seed: int
    target: str
    arm: ArmConfig | None
    fraction: float | None = None
    """None: the budget of `select`."""
    transfer: bool = False
    """Whether train.model is trained, and not the model that selects."""

    @property
    def label(self) -> str:
        """What is compared, without the seed, the target and the model: `less`, `bm25-mean`, `less-10pct`."""
        if self.arm is None:
            return BASE
        return self.arm.label if self.fraction is None else f"{self.arm.label}-{100 * self.fraction:g}pct"

    @property
    def name(self) -> str:
        """What its files in the seed's run folder are called."""
        return f"{self.label}-transfer" if self.transfer else self.label


def cells(config: RunConfig) -> Iterator[Cell]:
    """Every cell, a seed after the other; a model before training knows no seed."""
    settings = config.compare
    for seed in settings.seeds:
        for target in config.targets:
            for transfer in models(config):
                if seed == settings.seeds[0] and target.has_held_out:
                    yield Cell(seed, target.name, None, transfer=transfer)
                for arm in settings.methods:
                    for fraction in _budgets(config, arm):
                        yield Cell(seed, target.name, arm, fraction, transfer)


def models(config: RunConfig) -> list[bool]:
    """For each model that is trained: whether it is another one than the model that selects."""
    if config.train.model is None:
        return [False]
    return [False, True] if config.compare.own_model else [True]


def _budgets(config: RunConfig, arm: ArmConfig) -> list[float | None]:
    """The whole pool has no budget."""
    return list(config.compare.fractions) if config.compare.fractions and arm.method != "full" else [None]


def comparison_folder(config: RunConfig) -> Path:
    """Where everything of the comparison stands."""
    return config.run.path / "comparison"


def seed_config(config: RunConfig, seed: int) -> RunConfig:
    """The config of a seed's run folder, for all targets; the pool is that of the config's own seed."""
    pool = [
        source if source.sample_seed is not None else source.model_copy(update={"sample_seed": config.seed})
        for source in config.pool
    ]
    run_dir = str(comparison_folder(config) / f"seed-{seed}")
    return config.model_copy(update={"run_dir": run_dir, "seed": seed, "pool": pool})


def folder_config(config: RunConfig, seed: int, arm: ArmConfig | None) -> RunConfig:
    """The config of the run folder that an arm's cells are made in, for all targets.

    The seed's; or, where the arm's features or scores are others than the run's, one beside it, so that each folder
    keeps its own.
    """
    if arm is None:
        return seed_config(config, seed)
    own = arm_config(config, arm)
    seeded = seed_config(own, seed)
    if (own.features, own.score) == (config.features, config.score):
        return seeded
    return seeded.model_copy(update={"run_dir": f"{seeded.run_dir}.{arm.label}"})


def cell_config(config: RunConfig, cell: Cell) -> RunConfig:
    """The config that makes a cell and nothing else."""
    own = folder_config(config, cell.seed, cell.arm)
    update = {
        "targets": [target_of(config, cell)],
        "select": _select(own.select, cell),
        "train": _train(config, cell),
    }
    return own.model_copy(update=update)


def cell_folder(config: RunConfig, cell: Cell) -> RunFolder:
    """The run folder that a cell's files stand in."""
    return folder_config(config, cell.seed, cell.arm).run


def target_of(config: RunConfig, cell: Cell) -> TargetConfig:
    """The cell's target."""
    return next(target for target in config.targets if target.name == cell.target)


def _select(select: SelectConfig, cell: Cell) -> SelectConfig:
    if cell.arm is None:
        return select
    update = {"method": cell.arm.method, "name": cell.name}
    if cell.arm.strategy is not None:
        update["strategy"] = cell.arm.strategy
    budget = {} if cell.fraction is None else {"fraction": cell.fraction, "count": None, "tokens": None}
    return select.model_copy(update={**update, **budget})


def _train(config: RunConfig, cell: Cell) -> TrainConfig:
    train = config.train
    if train.model is not None and not cell.transfer:  # the model that selects, with its own encoding and LoRA modules
        lora = train.lora.model_copy(update={"target_modules": config.warmup.lora.target_modules})
        train = train.model_copy(update={"model": None, "encoding": None, "lora": lora})
    epochs = cell.arm and cell.arm.epochs
    return train.model_copy(update={"epochs": epochs}) if epochs else train
