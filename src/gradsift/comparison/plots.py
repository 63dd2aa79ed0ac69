"""The comparison's plots: score distributions, sources of the chosen rows, overlap between methods, loss by budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from gradsift.comparison.outcomes import Outcome, spread
from gradsift.comparison.plan import Cell, cell_folder, comparison_folder, seed_config
from gradsift.config import RunConfig
from gradsift.data import parsed_json, selected_lines
from gradsift.encoding import Corpus
from gradsift.machine import RunFolder, atomic_path
from gradsift.selection import ArmConfig
from gradsift.stages import read_selection

if TYPE_CHECKING:
    from matplotlib.axes import Axes


WITHOUT_SCORES = ("random", "full")
"""Methods whose scores say nothing of a row."""
MOST_SOURCES = 9
"""Sources with a colour of their own; the rest are drawn together."""
BINS = 60
DARK = 0.5
"""Share from which a cell of the heat map is dark."""


def draw(config: RunConfig, outcomes: Mapping[Cell, Outcome]) -> None:
    """Write RUN/comparison/plots/*.png from the cells that are done; a plot without data isn't written."""
    own_model = [cell for cell in outcomes if cell.arm is not None and not cell.transfer]
    selections = _Selections(config, [cell for cell in own_model if _is_here(config, cell)])
    if any(selections.scored(target.name) for target in config.targets):
        _figure(config, "scores", partial(_draw_scores, selections))
    if selections.labels:
        _figure(config, "sources", partial(_draw_sources, selections))
        _figure(config, "overlap", partial(_draw_overlap, selections))
    if config.compare.fractions:
        _figure(config, "budgets", partial(_draw_budgets, outcomes))


def _figure(config: RunConfig, name: str, draw_on: Callable[[Axes, str], None]) -> None:
    """A figure with a panel for each target."""
    from matplotlib.figure import Figure

    targets = [target.name for target in config.targets]
    figure = Figure(figsize=(5.5 * len(targets), 4.5), layout="constrained")
    for axis, target in zip(np.atleast_1d(figure.subplots(1, len(targets))), targets, strict=True):
        axis.set_title(target)
        draw_on(axis, target)
    with atomic_path(comparison_folder(config) / "plots" / f"{name}.png") as path:
        figure.savefig(path, dpi=120, format="png")


@dataclass(frozen=True)
class _Selections:
    """What was chosen in the cells of the model that selects."""

    config: RunConfig
    cells: Sequence[Cell]

    @cached_property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(cell.label for cell in self.cells))

    def scored(self, target: str) -> dict[str, tuple[Cell, str]]:
        """The first cell with the scores of every method, and of every arm that has its own, where they say something;
        and the method."""
        found: dict[str, tuple[Cell, str]] = {}
        for cell in self.cells:
            if cell.arm is not None and cell.target == target:
                for method in cell.arm.methods:
                    if method not in WITHOUT_SCORES:
                        found.setdefault(self._scored_as(cell, cell.arm, method), (cell, method))
        return found

    def _scored_as(self, cell: Cell, arm: ArmConfig, method: str) -> str:
        if cell_folder(self.config, cell) == seed_config(self.config, cell.seed).run:
            return method
        return arm.label if len(arm.methods) == 1 else f"{arm.label}: {method}"

    def of(self, target: str, label: str) -> list[frozenset[int]]:
        """Positions in the pool of the rows chosen, a set a seed."""
        found = [cell for cell in self.cells if cell.target == target and cell.label == label]
        runs = {cell: cell_folder(self.config, cell) for cell in found}
        return [frozenset(read_selection(run, target, cell.name)["rows"]) for cell, run in runs.items()]

    def scores(self, cell: Cell, method: str) -> npt.NDArray[np.float64]:
        """The pool's scores by that method of the cell's."""
        path = cell_folder(self.config, cell).scores(cell.target, method)
        scores: npt.NDArray[np.float64] = pq.read_table(path, columns=["score"])["score"].to_numpy()
        return scores[np.isfinite(scores)]

    def threshold(self, cell: Cell, method: str) -> float:
        """The least score of the best rows, as many as the cell chose."""
        count = int(read_selection(cell_folder(self.config, cell), cell.target, cell.name)["num_selected"])
        ordered = np.sort(self.scores(cell, method))
        return float(ordered[-min(count, len(ordered))])

    @cached_property
    def origins(self) -> dict[int, str]:
        """Where each row of the pool comes from: its source, or what the rows' own column says."""
        corpus = Corpus(RunFolder(self.config.run.path).pool)
        table = corpus.table(["row", "source", "source_row"])
        names = table["source"].to_pylist()
        column = self.config.compare.source_column
        if column is not None:
            names = list(self._named(column, names, table["source_row"].to_pylist()))
        return dict(zip(table["row"].to_pylist(), names, strict=True))

    def _named(self, column: str, sources: Sequence[str], rows: Sequence[int]) -> Iterator[str]:
        wanted: dict[str, list[int]] = {}
        for source, row in zip(sources, rows, strict=True):
            wanted.setdefault(source, []).append(row)
        lines = {str(s.name): selected_lines(s, wanted[str(s.name)]) for s in self.config.pool if s.name in wanted}
        for source, row in zip(sources, rows, strict=True):
            yield str(parsed_json(lines[source][row].decode()).get(column, source))


def _is_here(config: RunConfig, cell: Cell) -> bool:
    """Whether the cell's scores and selection are in this folder, and not only its record, carried from elsewhere."""
    assert cell.arm is not None
    run = cell_folder(config, cell)
    selection = run.selection(cell.target, cell.name)
    scores = [run.scores(cell.target, method) for method in cell.arm.methods]
    return all(path.is_file() for path in (*scores, selection, selection.with_suffix(".json")))


def _draw_scores(selections: _Selections, axis: Axes, target: str) -> None:
    """How the scores lie, in standard deviations from their mean, and where the chosen part begins."""
    for name, (cell, method) in selections.scored(target).items():
        scores = selections.scores(cell, method)
        scale = scores.std() or 1.0
        least = (selections.threshold(cell, method) - scores.mean()) / scale
        (drawn,) = axis.plot(*_density((scores - scores.mean()) / scale), label=name)
        axis.axvline(least, color=drawn.get_color(), linestyle=":", linewidth=1)
    axis.set_xlabel("score, in sd from the mean; dotted: least chosen")
    axis.set_ylabel("share of the pool's rows")
    axis.set_yscale("log")
    axis.legend(fontsize="small")


def _density(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    counts, edges = np.histogram(values, bins=BINS)
    shares = np.where(counts, counts / len(values), np.nan)
    return (edges[:-1] + edges[1:]) / 2, shares


def _draw_sources(selections: _Selections, axis: Axes, target: str) -> None:
    """Shares of the sources in the pool and in what each method chose, over all seeds."""
    mixes = {"pool": Counter(selections.origins.values())}
    for label in selections.labels:
        mixes[label] = Counter(selections.origins[row] for rows in selections.of(target, label) for row in rows)
    named = [name for name, _ in islice(mixes["pool"].most_common(), MOST_SOURCES)]
    shown = named if len(named) == len(mixes["pool"]) else [*named, "others"]
    left = np.zeros(len(mixes))
    for name in shown:
        shares = np.array([_share(mix, name, named) for mix in mixes.values()])
        axis.barh(list(mixes), shares, left=left, label=name)
        left += shares
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of the rows")
    axis.legend(fontsize="x-small", ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.15))


def _share(mix: Counter[str], name: str, named: Sequence[str]) -> float:
    total = max(1, mix.total())
    if name in named:
        return mix[name] / total
    return 1 - sum(mix[other] for other in named) / total if mix.total() else 0.0


def _draw_overlap(selections: _Selections, axis: Axes, target: str) -> None:
    """Rows that two selections share, by rows that either holds: the mean over seeds."""
    labels = [label for label in selections.labels if selections.of(target, label)]
    chosen = {label: selections.of(target, label) for label in labels}
    shares = np.array([[_jaccard(chosen[first], chosen[second]) for second in labels] for first in labels])
    axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axis.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axis.set_yticks(range(len(labels)), labels)
    for row, column in np.ndindex(*shares.shape):
        share = shares[row, column]
        shade = "white" if share > DARK else "black"
        axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=shade, fontsize="small")
    axis.set_xlabel("rows in both / rows in either, %")


def _jaccard(first: Sequence[frozenset[int]], second: Sequence[frozenset[int]]) -> float:
    return float(np.mean([len(a & b) / max(1, len(a | b)) for a, b in zip(first, second, strict=False)]))


def _draw_budgets(outcomes: Mapping[Cell, Outcome], axis: Axes, target: str) -> None:
    """Held-out loss by budget, a line a method; the full pool, where it was trained on, stands at 1."""
    losses: dict[str, dict[float, list[float]]] = {}
    for cell, outcome in outcomes.items():
        if cell.target == target and cell.arm is not None and not cell.transfer and outcome.loss is not None:
            budget = 1.0 if cell.fraction is None else cell.fraction
            losses.setdefault(cell.arm.label, {}).setdefault(budget, []).append(outcome.loss)
    for label, by_budget in losses.items():
        budgets = sorted(by_budget)
        spreads: list[Any] = [spread(by_budget[budget]) for budget in budgets]
        errors = [found.deviation or 0.0 for found in spreads]
        axis.errorbar(
            [100 * budget for budget in budgets], [found.mean for found in spreads], errors, marker="o", label=label
        )
    axis.set_xscale("log")
    axis.set_xlabel("budget, % of the pool")
    axis.set_ylabel("held-out loss, nats a token")
    axis.legend(fontsize="small")
