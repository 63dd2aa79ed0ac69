"""What is compared with what: the `compare` section of the config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from gradsift.baselines import methods
from gradsift.presets import PresetName
from gradsift.selection.selecting import MethodNames, StrategyName, members, method_label

NAMES_OF_CELLS = re.compile(r"base|.*-transfer|.*pct")
"""What a comparison calls the untrained model, the other model's cells and budgets."""


class ArmConfig(BaseModel):
    """A way to select: a method, or several fused, and what it has in the place of the run's settings.

    Any key of the sections `features`, `score` and `select` may stand beside the method; which there are, `config`
    knows, and refuses others.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    method: MethodNames
    name: str | None = None
    """None: of the method and its own settings."""
    strategy: StrategyName | None = None
    """None: select.strategy, else the method's own."""
    epochs: int | None = Field(None, ge=1)
    """Of the training; None: train.epochs. The full pool is large: fewer may do."""
    preset: PresetName | None = None
    """Whose features and scores it has, and whose `less_strategy` and `random_share` of `select`; the warmup is the
    run's. None: the run's."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its own keys of other sections."""
        return self.model_extra or {}

    @property
    def label(self) -> str:
        """What tables and files call it, in whatever order its settings stand."""
        if self.name is not None:
            return self.name
        own = (_said(key, value) for key, value in sorted(self.settings.items()))
        return "-".join(part for part in (method_label(self.method), self.strategy, self.preset, *own) if part)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that are fused, or the only one."""
        return members(self.method)


def _said(key: str, value: Any) -> str:
    """A setting in a name: a word says itself, a number its key too."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "-".join([key, *sorted(_said(str(inner), item) for inner, item in value.items())])
    return f"{key}{value}"


class CompareConfig(BaseModel):
    """Methods × targets × seeds, and the budgets that each is given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: list[ArmConfig] = Field(
        [ArmConfig(method=name) for name in ("less", "random", "bm25", "dsir", "rds", "full")], min_length=1
    )
    """Names of methods, lists of those to fuse (`[less, rds+]`), or `{method: less, strategy: top}`,
    `{method: full, epochs: 1}`, `{method: less, preset: paper}`, `{name: scaled, method: less, normalize: zscore}`."""
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    """Of the warmup's rows, the order of training and random choices; the pool and its samples stay the same."""
    fractions: list[float] = []
    """Budgets, as fractions of the pool, each a training of its own; none: the budget of `select`."""
    own_model: bool = True
    """Where train.model is another model: train the selection model too, so that transfer has something beside it."""
    source_column: str | None = None
    """Column of the pool's rows that names where a row comes from, for the plot of what was chosen; None: the pool's
    sources."""

    @field_validator("methods", mode="before")
    @classmethod
    def _name_is_a_method(cls, value: Any) -> Any:
        items = [value] if isinstance(value, str | Mapping) else value
        if not isinstance(items, list | tuple):
            return items  # refused by its type
        return [{"method": item} if isinstance(item, str | list) else item for item in items]

    @field_validator("methods")
    @classmethod
    def _no_name_is_another_methods(cls, value: list[ArmConfig]) -> list[ArmConfig]:
        """An arm that is called `random` would be what the others are held against."""
        for arm in value:
            if arm.name in methods() and arm.name != arm.method:
                raise ValueError(f"{arm.name} is the name of a method that the arm isn't of: give it another `name`")
        return value

    @field_validator("methods")
    @classmethod
    def _no_method_twice(cls, value: list[ArmConfig]) -> list[ArmConfig]:
        labels = [arm.label for arm in value]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"{label} stands there twice")
            if not re.fullmatch(r"\w[\w.+-]*", label):
                raise ValueError(f"{label[:40]!r} can't name files: give it a `name` of letters, digits, . _ + -")
            if NAMES_OF_CELLS.fullmatch(label):
                raise ValueError(f"{label} is what a cell of another kind is called: give it another `name`")
        return value

    @field_validator("fractions")
    @classmethod
    def _parts_of_the_pool(cls, value: list[float]) -> list[float]:
        for fraction in value:
            if not 0 < fraction <= 1:
                raise ValueError(f"{fraction} is no fraction of the pool: give numbers above 0, up to 1")
        return value

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, value: list[int]) -> list[int]:
        if len(set(value)) < len(value) or any(not 0 <= seed < 2**32 for seed in value):
            raise ValueError("seeds must differ, and be whole numbers from 0")
        return value
