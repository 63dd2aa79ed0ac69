"""From scores to the rows that are chosen: a strategy's order, and the budgets on the way down it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from gradsift.baselines import methods, own_strategy
from gradsift.errors import nearest
from gradsift.selection.strategies import STRATEGIES, Candidates
from gradsift.texts import Deduplication


def _known(name: str, names: Sequence[str]) -> str:
    if name not in names:
        raise ValueError(f"there is none of that name{nearest(name, names)}")
    return name


MethodName = Annotated[str, AfterValidator(lambda name: _known(name, methods()))]
"""`less`, or a baseline's name; others are refused with the nearest."""
StrategyName = Annotated[str, AfterValidator(lambda name: _known(name, tuple(STRATEGIES)))]


class SelectConfig(BaseModel):
    """How many rows to choose, and how. One of `fraction`, `count` and `tokens`; without any, 5 %."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: MethodName = "less"
    """What scores the rows: `less`, or a baseline's name; `full` takes every row, whatever the budget."""
    name: str | None = Field(None, pattern=r"^\w[\w.+-]*$")
    """What the selection, its model and its evaluation are called; None: the method. So that one run folder holds
    several selections of one method."""
    strategy: StrategyName | None = None
    """A name of STRATEGIES; None: the method's own, `top` but for `rds+`."""
    fraction: float | None = Field(None, gt=0, le=1)
    """Of the rows read from the pool."""
    count: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)
    """Rows are taken until the next one would pass this many tokens."""
    per_source_max: float | int | None = Field(None, gt=0)
    """The most that one source gives: below 1 a share of the budget, in its unit; else rows."""
    deduplicate: Deduplication = "none"
    """Of rows that are alike, the first is chosen: `exact` but for case and white space, or `near`."""
    near_threshold: float = Field(0.8, gt=0, lt=1)
    """Jaccard similarity of their 5-word runs from which rows are nearly alike."""
    gumbel: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Temperature t of a draw without replacement, a row's odds being exp(score / t); 0: none, the best are taken."""
    overlap_ngrams: int = Field(13, ge=0, le=1000)
    """Rows that share this many words in a row with an item of the target are kept out; 0: none."""

    @property
    def label(self) -> str:
        """The file name of what is made with these settings."""
        return self.name or self.method

    @field_validator("per_source_max")
    @classmethod
    def _share_or_rows(cls, most: float | int | None) -> float | int | None:
        if isinstance(most, float) and most >= 1:
            raise ValueError("give a share below 1, or a whole number of rows")
        return most

    @model_validator(mode="after")
    def _one_budget(self) -> SelectConfig:
        if sum(budget is not None for budget in (self.fraction, self.count, self.tokens)) > 1:
            raise ValueError("give one of fraction, count and tokens")
        return self

    @property
    def order(self) -> str:
        """The strategy by which rows are taken: the user's, else the method's own."""
        return self.strategy or own_strategy(self.method)


DEFAULT_FRACTION = 0.05


@dataclass(frozen=True)
class ScoredRows:
    """The pool's N rows as a selection sees them."""

    ids: Sequence[str]
    sources: Sequence[str]
    num_tokens_N: npt.NDArray[np.int64]
    score_N: npt.NDArray[np.float64]
    subtask_scores_NG: npt.NDArray[np.float32]
    num_read: int
    """Rows read from the pool, those set aside too."""


@dataclass(frozen=True)
class Chosen:
    """The rows taken, and those passed over on the way to them."""

    rows: npt.NDArray[np.int64]
    """Positions, best first."""
    kept_out: dict[str, int]
    """How many rows were passed over for which key of the config."""


def ranking(rows: ScoredRows, strategy: str) -> Iterator[int]:
    """Positions of the rows that can be selected, best first; equals by id, then source; never a score that is no
    finite number."""
    selectable = np.isfinite(rows.score_N) & np.isfinite(rows.subtask_scores_NG).all(axis=1)
    positions = np.flatnonzero(selectable)
    keys = pa.table({"id": pa.array(rows.ids, pa.string()), "source": pa.array(rows.sources, pa.string())})
    order = [("id", "ascending"), ("source", "ascending")]
    tied = positions[pc.sort_indices(keys.take(positions), sort_keys=order).to_numpy()]
    candidates = Candidates(rows.score_N[tied], rows.subtask_scores_NG[tied])
    return (int(tied[place]) for place in STRATEGIES[strategy](candidates))


def with_gumbel_noise(rows: ScoredRows, temperature: float, seed: int) -> ScoredRows:
    """The rows with noise on their scores, so that the best of them are a draw without replacement.

    Gumbel top-k: sorting by score / t + g is drawing one row after the other with odds exp(score / t). A row's noise
    is the same in every subtask, so that the score stays what was made of the subtasks' scores.
    """
    noise_N = temperature * np.random.default_rng([seed, len(rows.ids)]).gumbel(size=len(rows.ids))
    noisy_NG = (rows.subtask_scores_NG + noise_N[:, None]).astype(np.float32)
    return replace(rows, score_N=rows.score_N + noise_N, subtask_scores_NG=noisy_NG)


def choose(
    order: Iterable[int], rows: ScoredRows, config: SelectConfig, is_duplicate: Callable[[int], bool] | None = None
) -> Chosen:
    """The rows that fit the budget, in this order; fewer where there are fewer. Every row is looked at once at most.

    `full` knows no budget, and neither caps nor duplicates.
    """
    if config.method == "full":
        return Chosen(np.fromiter(order, np.int64), {})
    budget, caps = _budget(rows, config), _SourceCaps(rows, config)
    chosen: list[int] = []
    kept_out: Counter[str] = Counter()
    for row in order:
        if budget.is_spent:
            break
        if not caps.fit(row):
            kept_out["per_source_max"] += 1
        elif is_duplicate is not None and is_duplicate(row):
            kept_out["deduplicate"] += 1
        elif budget.fits(row):
            budget.take(row)
            caps.take(row)
            chosen.append(row)
        else:
            break
    return Chosen(np.asarray(chosen, dtype=np.int64), dict(kept_out))


def wanted_count(num_read: int, config: SelectConfig) -> int:
    """Rows asked for by `count` or `fraction`; a fraction is rounded down, and chooses at least one."""
    if config.count is not None:
        return config.count
    fraction = DEFAULT_FRACTION if config.fraction is None else config.fraction
    return _share(fraction, num_read)


def _share(share: float, whole: int) -> int:
    return max(1, math.floor(share * whole + 1e-9))


class _Budget:
    """What may still be taken, in rows or, where `costs_N` says how many each has, in tokens."""

    def __init__(self, limit: int, costs_N: npt.NDArray[np.int64] | None = None) -> None:
        self.limit, self.costs_N = limit, costs_N
        self._spent = 0

    @property
    def is_spent(self) -> bool:
        return self._spent >= self.limit

    def fits(self, row: int) -> bool:
        return self._spent + self._cost(row) <= self.limit

    def take(self, row: int) -> None:
        self._spent += self._cost(row)

    def _cost(self, row: int) -> int:
        return 1 if self.costs_N is None else int(self.costs_N[row])


def _budget(rows: ScoredRows, config: SelectConfig) -> _Budget:
    if config.tokens is not None:
        return _Budget(config.tokens, rows.num_tokens_N)
    return _Budget(wanted_count(rows.num_read, config))


class _SourceCaps:
    """A budget of its own for every source, where `per_source_max` gives one."""

    def __init__(self, rows: ScoredRows, config: SelectConfig) -> None:
        self._sources = rows.sources
        self._caps: dict[str, _Budget] = {}
        if config.per_source_max is not None:
            self._caps = {source: _source_cap(rows, config) for source in set(rows.sources)}

    def fit(self, row: int) -> bool:
        return not self._caps or self._caps[self._sources[row]].fits(row)

    def take(self, row: int) -> None:
        if self._caps:
            self._caps[self._sources[row]].take(row)


def _source_cap(rows: ScoredRows, config: SelectConfig) -> _Budget:
    most, whole = config.per_source_max, _budget(rows, config)
    assert most is not None
    return _Budget(int(most)) if most >= 1 else _Budget(_share(most, whole.limit), whole.costs_N)
