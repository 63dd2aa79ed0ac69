"""From scores to the rows that are chosen: a strategy's order, and the budgets on the way down it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from gradsift.baselines import methods, own_strategy
from gradsift.errors import nearest
from gradsift.selection.strategies import STRATEGIES, Candidates
from gradsift.texts import Deduplication


def _known(name: str, names: Sequence[str]) -> str:
    if name not in names:
        raise ValueError(f"there is none of that name{nearest(name, names)}")
    return name


def _known_methods(value: Any) -> str | tuple[str, ...]:
    names = list(value) if isinstance(value, list | tuple) else [value]
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError("give the name of a method, or a list of those to fuse")
    for name in names:
        if names.count(_known(name, methods())) > 1:
            raise ValueError(f"{name} stands there twice")
    if len(names) > 1 and "full" in names:
        raise ValueError("full takes every row, whatever others say: leave it out")
    return names[0] if len(names) == 1 else tuple(names)


MethodNames = Annotated[str | tuple[str, ...], BeforeValidator(_known_methods)]
"""The name of one method, `less` or a baseline's, or of several whose orders are fused; others are refused with the
nearest."""
StrategyName = Annotated[str, AfterValidator(lambda name: _known(name, tuple(STRATEGIES)))]


def members(method: str | tuple[str, ...]) -> tuple[str, ...]:
    """The names of the methods that are fused; one alone is its only member."""
    return (method,) if isinstance(method, str) else method


def method_label(method: str | tuple[str, ...]) -> str:
    """What files and tables call a method, or several fused: `rds+`, `fused-less-rds+`."""
    return method if isinstance(method, str) else "-".join(["fused", *method])


class SelectConfig(BaseModel):
    """How many rows to choose, and how. One of `fraction`, `count` and `tokens`; without any, 5 %."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: MethodNames = "less"
    """What scores the rows: `less`, or a baseline's name; `full` takes every row, whatever the budget. Of a list each
    orders the rows in its own way, and the orders are fused."""
    name: str | None = Field(None, pattern=r"^\w[\w.+-]*$")
    """What the selection, its model and its evaluation are called; None: the method. So that one run folder holds
    several selections of one method."""
    strategy: StrategyName | None = None
    """A name of STRATEGIES; None: the method's own, `top` but for `less` and `rds+`."""
    less_strategy: StrategyName = "round_robin"
    """The own one of `less`: by the maximum one subtask takes most rows (docs/results.md); the paper has `top`."""
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
    random_share: float = Field(0.0, ge=0, lt=1)
    """Share of the budget that is drawn at random from the rows left, after the best ones; so arXiv 2510.00386."""
    overlap_ngrams: int = Field(13, ge=0, le=1000)
    """Rows that share this many words in a row with an item of the target are kept out; 0: none."""

    @property
    def label(self) -> str:
        """The file name of what is made with these settings."""
        return self.name or method_label(self.method)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that are fused, or the only one."""
        return members(self.method)

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
    def idle_keys(self) -> set[str]:
        """Keys that decide nothing beside the others: a selection stays when they change."""
        return set() if "less" in self.methods and self.strategy is None else {"less_strategy"}

    def order_of(self, method: str) -> str:
        """The strategy by which rows are taken from a method's scores: the user's, else the method's own."""
        return self.strategy or (self.less_strategy if method == "less" else own_strategy(method))


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
    """Positions, best first, then those drawn at random."""
    kept_out: dict[str, int]
    """How many rows were passed over for which key of the config."""
    num_random: int = 0
    """Of the rows, the last so many were drawn at random."""


def ranking(rows: ScoredRows, strategy: str) -> Iterator[int]:
    """Positions of the rows that can be selected, best first; equals by id, then source; never a score that is no
    finite number."""
    positions = np.flatnonzero(_is_selectable(rows))
    keys = pa.table({"id": pa.array(rows.ids, pa.string()), "source": pa.array(rows.sources, pa.string())})
    order = [("id", "ascending"), ("source", "ascending")]
    tied = positions[pc.sort_indices(keys.take(positions), sort_keys=order).to_numpy()]
    candidates = Candidates(rows.score_N[tied], rows.subtask_scores_NG[tied])
    return (int(tied[place]) for place in STRATEGIES[strategy](candidates))


def _is_selectable(rows: ScoredRows) -> npt.NDArray[np.bool_]:
    is_selectable_N: npt.NDArray[np.bool_] = np.isfinite(rows.score_N) & np.isfinite(rows.subtask_scores_NG).all(axis=1)
    return is_selectable_N


def drawn(sides: Sequence[ScoredRows], seed: int) -> Iterator[int]:
    """Positions of the rows that every method could select, every order equally likely.

    The numbers are others than those of the method `random`, which may be among the methods.
    """
    positions = np.flatnonzero(np.logical_and.reduce([_is_selectable(side) for side in sides]))
    return iter(np.random.default_rng([seed, len(sides[0].ids), 1]).permutation(positions).tolist())


def with_gumbel_noise(rows: ScoredRows, temperature: float, seed: int) -> ScoredRows:
    """The rows with noise on their scores, so that the best of them are a draw without replacement.

    Gumbel top-k: sorting by score / t + g is drawing one row after the other with odds exp(score / t). A row's noise
    is the same in every subtask, so that the score stays what was made of the subtasks' scores.
    """
    noise_N = temperature * np.random.default_rng([seed, len(rows.ids)]).gumbel(size=len(rows.ids))
    noisy_NG = (rows.subtask_scores_NG + noise_N[:, None]).astype(np.float32)
    return replace(rows, score_N=rows.score_N + noise_N, subtask_scores_NG=noisy_NG)


def choose(
    order: Iterable[int],
    rows: ScoredRows,
    config: SelectConfig,
    is_duplicate: Callable[[int], bool] | None = None,
    at_random: Iterable[int] = (),
) -> Chosen:
    """The rows that fit the budget, in this order, and for `random_share` of it in the order `at_random`; fewer where
    there are fewer. Every row is looked at once at most.

    `full` knows no budget, and neither caps nor duplicates.
    """
    if config.method == "full":
        return Chosen(np.fromiter(order, np.int64), {})
    walk = _Walk(rows, config, is_duplicate)
    walk.take(order, walk.budget.limit - math.floor(config.random_share * walk.budget.limit + 1e-9))
    num_scored = len(walk.chosen)
    if config.random_share:
        walk.take(at_random, walk.budget.limit)
    return Chosen(np.asarray(walk.chosen, dtype=np.int64), dict(walk.kept_out), len(walk.chosen) - num_scored)


class _Walk:
    """Takes rows one after the other, as budget, caps and duplicates allow."""

    def __init__(self, rows: ScoredRows, config: SelectConfig, is_duplicate: Callable[[int], bool] | None) -> None:
        self.chosen: list[int] = []
        self.kept_out: Counter[str] = Counter()
        self.budget = _budget(rows, config)
        self._caps, self._is_duplicate = _SourceCaps(rows, config), is_duplicate
        self._seen: set[int] = set()

    def take(self, order: Iterable[int], limit: int) -> None:
        """Go down the order until that much of the budget is spent, or the next row would pass it."""
        for row in order:
            if self.budget.spent >= limit:
                break
            if row in self._seen:
                continue
            self._seen.add(row)
            if not self._caps.fit(row):
                self.kept_out["per_source_max"] += 1
            elif self._is_duplicate is not None and self._is_duplicate(row):
                self.kept_out["deduplicate"] += 1
            elif self.budget.fits(row, limit):
                self.budget.take(row)
                self._caps.take(row)
                self.chosen.append(row)
            else:
                break


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
        self.limit, self.costs_N, self.spent = limit, costs_N, 0

    def fits(self, row: int, limit: int) -> bool:
        """Whether no more than `limit` is spent with the row."""
        return self.spent + self._cost(row) <= limit

    def take(self, row: int) -> None:
        self.spent += self._cost(row)

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
        if not self._caps:
            return True
        cap = self._caps[self._sources[row]]
        return cap.fits(row, cap.limit)

    def take(self, row: int) -> None:
        if self._caps:
            self._caps[self._sources[row]].take(row)


def _source_cap(rows: ScoredRows, config: SelectConfig) -> _Budget:
    most, whole = config.per_source_max, _budget(rows, config)
    assert most is not None
    return _Budget(int(most)) if most >= 1 else _Budget(_share(most, whole.limit), whole.costs_N)
