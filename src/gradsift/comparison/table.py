"""The comparison's tables in Markdown: all targets side by side, then each with differences to random and costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradsift.comparison.outcomes import (
    Difference,
    Outcome,
    Spread,
    deviations_below,
    loss_difference,
    metric_difference,
    spread,
    subtasks_below,
)
from gradsift.comparison.plan import Cell, comparison_folder, models
from gradsift.config import RunConfig
from gradsift.machine import atomic_open, duration, table
from gradsift.stages import BASE

TABLE_FILE = "comparison.md"
CONTROL = "random"
NOTE = (
    "Mean over seeds (standard deviation). Loss: of the right answers to held-out items, nats a token; lower is better."
    " Differences are paired, seed by seed and item by item, with the interval that holds 95 % of 2,000 resamples of "
    "seeds and items. In sd: how far the loss is below random's, in standard deviations over seeds of the one that "
    "varies more. Subtasks below: on how many subtasks the loss is below random's. Costs are of one seed: warmup and "
    "features are made once for all targets."
)


@dataclass(frozen=True)
class _Column:
    """One target and one trained model: the outcomes of every label, over the seeds."""

    target: str
    heading: str
    outcomes: Mapping[str, Sequence[Outcome]]

    def of(self, label: str) -> Sequence[Outcome]:
        return self.outcomes.get(label, ())

    def controls(self, label: str) -> Sequence[Outcome]:
        """Random choice at the label's budget, where there is such."""
        budget = label.rpartition("-")[2]
        return self.of(f"{CONTROL}-{budget}" if budget.endswith("pct") else CONTROL)


def write_table(config: RunConfig, outcomes: Mapping[Cell, Outcome]) -> str:
    """Write RUN/comparison/comparison.md; its text, and where it stands."""
    path = comparison_folder(config) / TABLE_FILE
    text = "\n".join(table_lines(config, outcomes))
    with atomic_open(path) as file:
        file.write(text.encode() + b"\n")
    return f"{text}\n{path}"


def table_lines(config: RunConfig, outcomes: Mapping[Cell, Outcome]) -> list[str]:
    """The tables of the cells that are done."""
    columns = _columns(config, outcomes)
    labels = list(dict.fromkeys(label for column in columns for label in column.outcomes))
    seeds = ", ".join(map(str, config.compare.seeds))
    lines = ["# Comparison", "", f"Seeds {seeds}. {NOTE}", "", *_overview(columns, labels), ""]
    for column in columns:
        lines += [f"## {column.heading}", "", *_details(column), ""]
    return lines


def _columns(config: RunConfig, outcomes: Mapping[Cell, Outcome]) -> list[_Column]:
    columns = []
    for target in config.targets:
        for transfer in models(config):
            found: dict[str, list[Outcome]] = {}
            for cell, outcome in outcomes.items():
                if cell.target == target.name and cell.transfer == transfer:
                    found.setdefault(cell.label, []).append(outcome)
            trained = config.train.model if transfer else None
            heading = target.name if trained is None else f"{target.name} → {trained.name_or_path.rpartition('/')[2]}"
            columns.append(_Column(target.name, heading, found))
    return columns


def _overview(columns: Sequence[_Column], labels: Sequence[str]) -> list[str]:
    heading = ["method"]
    for column in columns:
        heading += [f"{column.heading}: loss", f"{column.heading}: {_metric_name(column)}"]
    rows = []
    for label in labels:
        cells = [label]
        for column in columns:
            cells += [_loss(column.of(label)), _metric(column.of(label))]
        rows.append(cells)
    return table(heading, rows)


def _details(column: _Column) -> list[str]:
    heading = [
        "method",
        "loss − random's",
        "in sd",
        "subtasks below",
        f"{_metric_name(column)} − random's",
        "rows",
        "tokens",
        "selection",
        "FLOPs",
        "training",
        "FLOPs",
        "seeds",
    ]
    return table(heading, [_detail(column, label) for label in column.outcomes if label != BASE])


def _detail(column: _Column, label: str) -> list[str]:
    outcomes, controls = column.of(label), column.controls(label)
    own = outcomes is not controls
    records = [outcome.record for outcome in outcomes]
    cells = [
        label,
        _difference(loss_difference(outcomes, controls) if own else None, 3),
        _deviations(outcomes, controls) if own else "–",
        _subtasks(subtasks_below(outcomes, controls) if own else None),
        _difference(metric_difference(outcomes, controls) if own else None, 1, scale=100),
        _mean(record["num_selected"] for record in records),
        _mean(record["num_tokens"] for record in records),
    ]
    for part in ("selection", "training"):
        seconds = spread([record[part]["seconds"] for record in records])
        flops = spread([record[part]["flops"] for record in records if record[part]["flops"]])
        assert seconds is not None
        cells += [duration(seconds.mean), "–" if flops is None else f"{flops.mean:.1e}"]
    return [*cells, str(len(outcomes))]


def _deviations(outcomes: Sequence[Outcome], controls: Sequence[Outcome]) -> str:
    below = deviations_below(_losses(outcomes), _losses(controls))
    return "–" if below is None else f"{below:.1f}"


def _subtasks(found: tuple[int, int] | None) -> str:
    return "–" if found is None else f"{found[0]} of {found[1]}"


def _losses(outcomes: Sequence[Outcome]) -> list[float]:
    return [outcome.loss for outcome in outcomes if outcome.loss is not None]


def _metric_name(column: _Column) -> str:
    names = [outcome.record["metric_name"] for outcomes in column.outcomes.values() for outcome in outcomes]
    return next((f"{name} %" for name in names if name), "metric")


def _loss(outcomes: Sequence[Outcome]) -> str:
    return _spread(spread(_losses(outcomes)), 3)


def _metric(outcomes: Sequence[Outcome]) -> str:
    return _spread(spread([100 * outcome.metric for outcome in outcomes if outcome.metric is not None]), 1)


def _spread(found: Spread | None, digits: int) -> str:
    if found is None:
        return "–"
    deviation = "" if found.deviation is None else f" ({found.deviation:.{digits}f})"
    return f"{found.mean:.{digits}f}{deviation}"


def _difference(found: Difference | None, digits: int, scale: float = 1) -> str:
    if found is None:
        return "–"
    mean, low, high = (scale * value for value in found)
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _mean(values: object) -> str:
    found = spread(list(values))  # type: ignore[call-overload]
    return "–" if found is None else f"{found.mean:,.0f}"
