"""What came of the cells: their figures over the seeds, and differences to random choice with their intervals."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)
"""Percentiles: 95 %."""


class Spread(NamedTuple):
    """A mean over seeds and its standard deviation, None for a single seed."""

    mean: float
    deviation: float | None


class Difference(NamedTuple):
    """A mean difference over seeds and items, and the interval that holds 95 % of its resamples."""

    mean: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread | None:
    """Of one value a seed; None of none."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Outcome:
    """A finished cell, as its record says it."""

    record: Mapping[str, Any]
    predictions_path: Path

    @property
    def loss(self) -> float | None:
        """Held-out answer loss, nats a token."""
        loss = self.record["answer_loss"]
        return None if loss is None else float(loss)

    @property
    def metric(self) -> float | None:
        """The target's main metric, from 0 to 1."""
        metric = self.record["metric"]
        return None if metric is None else float(metric)

    @cached_property
    def items(self) -> dict[str, Mapping[str, Any]]:
        """The held-out items by id, as predictions.jsonl says them; none where nothing is held out."""
        if not self.predictions_path.is_file():
            return {}
        with self.predictions_path.open(encoding="utf-8") as file:
            return {row["id"]: row for row in map(json.loads, file)}


def loss_difference(arms: Sequence[Outcome], others: Sequence[Outcome]) -> Difference | None:
    """Loss of the arms less that of the others, seed by seed and item by item, in nats a token."""
    return _paired(arms, others, _nats, lambda item: item["answer_tokens"])


def metric_difference(arms: Sequence[Outcome], others: Sequence[Outcome]) -> Difference | None:
    """Likewise of the main metric; every item weighs the same, also where the protocol averages over subtasks."""
    name = arms[0].record["metric_name"] if arms else None
    return _paired(arms, others, lambda item: item["scores"].get(name), lambda item: 1)


def subtasks_below(arms: Sequence[Outcome], others: Sequence[Outcome]) -> tuple[int, int] | None:
    """On how many subtasks the arms' loss is below that of the others, over the same seeds, and on how many it is
    measured."""
    pairs = _pairs(arms, others)
    differences: dict[str, float] = {}
    for arm, other in pairs:
        for name, item in arm.items.items():
            nats, nats_of_other = _nats(item), _nats(other.items[name])
            if nats is not None and nats_of_other is not None:
                subtask = item["subtask"]
                differences[subtask] = differences.get(subtask, 0.0) + nats - nats_of_other
    return (sum(value < 0 for value in differences.values()), len(differences)) if differences else None


def _nats(item: Mapping[str, Any]) -> float | None:
    nats: float | None = item["answer_nats"]
    return nats


def _paired(arms: Sequence[Outcome], others: Sequence[Outcome], value: Any, weight: Any) -> Difference | None:
    """Resamples seeds and, within all of them alike, items, each with replacement."""
    pairs = _pairs(arms, others)
    if not pairs:
        return None
    names = [name for name, item in pairs[0][0].items.items() if value(item) is not None]
    if not names:
        return None
    weights_Q = np.array([weight(pairs[0][0].items[name]) for name in names], dtype=np.float64)
    differences_SQ = np.array([[value(a.items[name]) - value(b.items[name]) for name in names] for a, b in pairs])
    return bootstrapped(differences_SQ, weights_Q)


def _pairs(arms: Sequence[Outcome], others: Sequence[Outcome]) -> list[tuple[Outcome, Outcome]]:
    """Outcomes of the same seed."""
    by_seed = {outcome.record["seed"]: outcome for outcome in others}
    return [(arm, by_seed[arm.record["seed"]]) for arm in arms if arm.record["seed"] in by_seed]


def bootstrapped(differences_SQ: npt.NDArray[np.float64], weights_Q: npt.NDArray[np.float64]) -> Difference:
    """Mean over S seeds of the sum over Q items by the sum of the items' weights; 2,000 resamples, seeded."""
    num_seeds, num_items = differences_SQ.shape
    generator = np.random.default_rng(0)
    seeds_RS = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=RESAMPLES)
    means_R = np.empty(RESAMPLES)
    for resample, seeds_S in enumerate(seeds_RS):  # one at a time: all of them at once are gigabytes
        items_Q = np.bincount(generator.integers(num_items, size=num_items), minlength=num_items)
        means_R[resample] = seeds_S @ (differences_SQ @ items_Q) / num_seeds / (weights_Q @ items_Q)
    low, high = np.percentile(means_R, INTERVAL)
    return Difference(float(differences_SQ.sum() / num_seeds / weights_Q.sum()), float(low), float(high))


def deviations_below(arms: Iterable[float], others: Iterable[float]) -> float | None:
    """By how many standard deviations, of the side that varies more over seeds, the arms' mean is below the others'."""
    arm, other = spread(list(arms)), spread(list(others))
    if arm is None or other is None or arm.deviation is None or other.deviation is None:
        return None
    widest = max(arm.deviation, other.deviation)
    return (other.mean - arm.mean) / widest if widest > 0 else None
