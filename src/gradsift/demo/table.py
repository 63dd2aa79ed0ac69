"""The demo's table: what each method selected for a target, and how the model that was trained on it answers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gradsift.evaluation import PREDICTIONS_FILE
from gradsift.machine import RunFolder, read_record

METHODS: dict[str, tuple[str, ...]] = {
    "less": ("select.method=less",),
    "random": ("select.method=random",),
    "bm25": ("select.method=bm25",),
    # Five times the steps of the others even so.
    "full": ("select.method=full", "train.epochs=1"),
}
"""The methods, and what each is on the command line."""
NAMES = {"less": "LESS", "random": "random", "bm25": "BM25", "full": "full pool"}


@dataclass(frozen=True)
class Outcome:
    """One method with one seed."""

    num_rows: int
    right: float
    """Share of the rows that have the target's skill."""
    loss: float
    """On the held-out rows, nats a token of the right answers."""
    accuracy: float
    """Of the greedy answers to them."""


@dataclass(frozen=True)
class Outcomes:
    """Where the outcomes of a target stand: OUT/seed-<seed>/."""

    out: Path
    target: str
    seeds: Sequence[int]

    def of(self, method: str) -> list[Outcome]:
        """One a seed."""
        return [self._outcome(RunFolder(self.out / f"seed-{seed}"), method) for seed in self.seeds]

    def base(self) -> tuple[float, float]:
        """Held-out loss and accuracy of the base model."""
        return _measured(RunFolder(self.out / f"seed-{self.seeds[0]}").evaluation(self.target, "base"))

    def _outcome(self, run: RunFolder, method: str) -> Outcome:
        lines = run.selection(self.target, method).read_text(encoding="utf-8").splitlines()
        right = sum(json.loads(line)["skill"] == self.target for line in lines) / len(lines)
        return Outcome(len(lines), right, *_measured(run.evaluation(self.target, method)))


def _measured(path: Path) -> tuple[float, float]:
    """Loss in nats a token, and the share of answers that are right sign for sign.

    The metric exact_match isn't used: it drops signs, which are half of the answers' working here.
    """
    with (path.with_suffix("") / PREDICTIONS_FILE).open(encoding="utf-8") as file:
        predictions = [json.loads(line) for line in file]
    right = sum(prediction["output"].strip() in prediction["answers"] for prediction in predictions)
    return read_record(path, ("answer_loss",)).facts["answer_loss"]["nats_per_token"], right / len(predictions)


def table(outcomes: Outcomes) -> list[str]:
    """Lines of text: means and standard deviations over the seeds, and LESS against random."""
    by_method = {method: outcomes.of(method) for method in METHODS}
    loss, accuracy = outcomes.base()
    lines = [
        f"target {outcomes.target}: mean ± standard deviation over {len(outcomes.seeds)} seeds",
        f"{'trained on':12}{'rows':>6}{'of the right skill':>21}{'held-out loss':>19}{'accuracy':>17}",
        f"{'nothing':12}{0:>6}{'':>21}{_spread([loss], '.3f'):>19}{_spread([accuracy], '.1%'):>17}",
    ]
    lines += [_line(NAMES[method], found) for method, found in by_method.items()]
    lines.append("(the full pool is trained on for one epoch: five times the steps of the others)")
    return [*lines, _comparison(by_method["less"], by_method["random"])]


def _line(name: str, found: Sequence[Outcome]) -> str:
    right = _spread([outcome.right for outcome in found], ".1%")
    loss = _spread([outcome.loss for outcome in found], ".3f")
    accuracy = _spread([outcome.accuracy for outcome in found], ".1%")
    return f"{name:12}{found[0].num_rows:>6,}{right:>21}{loss:>19}{accuracy:>17}"


def _spread(values: Sequence[float], form: str) -> str:
    mean = format(statistics.fmean(values), form)
    return f"{mean} ± {format(statistics.stdev(values), form)}" if len(values) > 1 else mean


def _comparison(less: Sequence[Outcome], random: Sequence[Outcome]) -> str:
    gains = [theirs.loss - ours.loss for ours, theirs in zip(less, random, strict=True)]
    text = f"held-out loss: LESS below random by {_spread(gains, '.3f')} nats a token, seed by seed"
    if len(gains) < 2:
        return text
    largest = max(statistics.stdev(outcome.loss for outcome in arm) for arm in (less, random))
    ratios = [f"{statistics.fmean(gains) / spread:.1f}" for spread in (statistics.stdev(gains), largest) if spread > 0]
    return f"{text}: {' and '.join(ratios)} standard deviations (of the difference; of the wider arm)"
