"""The report of the influence check: correlations, overlaps and shares from its figures, as JSON and a plot."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradsift.influence_check.agreement import overlap, pearson, share_of_variance, spearman, top_rows
from gradsift.influence_check.check import InfluenceCheck, read_figures
from gradsift.influence_check.experiments import EXACT, STEP, Figures, Part, projection_name, stored_name
from gradsift.influence_check.predictions import DIRECTIONS, MEASURES, WITHOUT_MOMENTUM, Products
from gradsift.influence_check.tables import Record, report_lines
from gradsift.machine import atomic_open, atomic_path, write_json
from gradsift.selection import combined, on_one_scale

TOP_FRACTION = 0.05


@dataclass(frozen=True)
class Measured:
    """An experiment's figures for one target."""

    part: Part
    figures: Figures

    def products(self, form: str, projection: str = EXACT) -> Products:
        """The products in that form and projection."""
        tensors = (self.figures.tensors[f"{form}|{projection}|{name}"] for name in ("dots", "cosines", "norms"))
        return Products(*tensors)

    @property
    def keys(self) -> list[tuple[str, str]]:
        """Forms and projections that there are products of, in a fixed order."""
        names = [name.split("|") for name in self.figures.tensors if name.endswith("|dots")]
        return sorted(((form, projection) for form, projection, _ in names), key=_place)

    @property
    def weights(self) -> Tensor:
        """Share of the examples that each subtask has: float64 [G]."""
        counts_G = torch.tensor(self.figures.facts["counts"], dtype=torch.float64)
        return counts_G / counts_G.sum()

    @property
    def drops(self) -> np.ndarray:
        """How much the loss fell at each draw, by subtask, in nats: float64 [N, G]."""
        return self.figures.tensors["drops"].numpy()

    def whole(self, values_NG: Tensor) -> np.ndarray:
        """Mean over the target's examples of values by subtask: float64 [N]."""
        found: np.ndarray = (values_NG.double() @ self.weights).numpy()
        return found

    @property
    def mean_drops(self) -> np.ndarray:
        """How much the target's mean loss fell at each draw: float64 [N]."""
        return self.whole(self.figures.tensors["drops"])


def _place(key: tuple[str, str]) -> tuple[int, str, list[int], int]:
    """Where a form and projection stand in the tables: exact first, then by kind, K and seed; as stored, after that."""
    form, projection = key
    kind, *rest = projection.split("/")
    numbers = [int(part) for part in rest if part.isdecimal()]
    return [*DIRECTIONS, STEP].index(form), "" if projection == EXACT else kind, numbers, len(rest)


def write_influence_report(check: InfluenceCheck, parts: Sequence[Part], targets: Sequence[str]) -> str:
    """Write RUN/checks/influence.json, .md and .png; the tables as text."""
    measured = {
        target: [Measured(part, read_figures(check.file(part, target))) for part in parts] for target in targets
    }
    report = report_of(check, measured)
    folder = check.run.influence_check.parent
    write_json(folder / "influence.json", report)
    text = "\n".join(report_lines(report))
    with atomic_open(folder / "influence.md") as file:
        file.write(text.encode() + b"\n")
    plot(check, measured)
    return f"{text}\n\n{folder / 'influence.json'}, influence.md, influence.png"


def report_of(check: InfluenceCheck, measured: Mapping[str, Sequence[Measured]]) -> Record:
    """Everything that is reported, as JSON."""
    any_target = next(iter(measured.values()))
    singles = _in_order(item for item in any_target if item.part.experiment == "single")
    return {
        "settings": {
            **check.config.model_dump(mode="json"),
            "adam": check.settings.adam,
            "score": check.settings.score.model_dump(),
        },
        "main_checkpoint": any_target[0].part.checkpoint.name,
        "checkpoints": [_checkpoint(item) for item in singles],
        "targets": {target: _target(check, items) for target, items in measured.items()},
    }


def _target(check: InfluenceCheck, items: Sequence[Measured]) -> Record:
    facts, real = items[0].figures.facts, items[0].drops
    stability = [item for item in items if item.part.experiment == "stability"]
    projected = [item for item in items if item.part.experiment == "projected"]
    singles = _in_order(item for item in items if item.part.experiment == "single")
    tried = [item for item in items if "drops" in item.figures.tensors]
    return {
        "examples": sum(facts["counts"]),
        "of": facts["num_target_rows"],
        "subtasks": len(facts["subtasks"]),
        "tokens": facts["target_tokens"],
        "agreement": [record for item in tried for record in agreement(item, item.drops)],
        "projected": [record for item in projected[:1] for record in agreement(item, real)],
        "checkpoints": [
            *by_checkpoints(singles, singles, EXACT, check.settings.adam),
            *(
                record
                for own in _own_names(check, projected)
                for record in by_checkpoints(singles, _in_order(projected), own, check.settings.adam)
            ),
        ],
        "shared_term": [record for item in singles for record in shared_terms(item)],
        "stability": [record for item in stability for record in stabilities(check, item)],
    }


def _own_names(check: InfluenceCheck, projected: Sequence[Measured]) -> list[str]:
    """The run's own projection, and that as its rows are stored."""
    names = [projection_name(own) for own in check.own_projection]
    quantised = projected[0].part.quantised if projected else {}
    return names + [stored_name(name, quantised[name]) for name in names if name in quantised]


def _in_order(items: Iterable[Measured]) -> list[Measured]:
    """One experiment at every checkpoint, in the order of the checkpoints."""
    return sorted(items, key=lambda item: item.part.checkpoint.step)


def _checkpoint(item: Measured) -> Record:
    facts = item.figures.facts
    return {
        "name": item.part.checkpoint.name,
        "learning_rate": item.part.checkpoint.learning_rate,
        "draws": item.part.draws,
        **{key: facts[key] for key in ("clipped", "epsilon", "pairwise_cosine")},
    }


def agreement(item: Measured, drops_NG: np.ndarray) -> Iterable[Record]:
    """How every form, projection and measure agrees with the real loss drops of these draws."""
    real_N = item.whole(torch.from_numpy(drops_NG))
    for form, projection in item.keys:
        found, exact = item.products(form, projection), item.products(form)
        for measure in MEASURES:
            values_NG = found.measure(measure)
            predicted_N, exact_N = item.whole(values_NG), item.whole(exact.measure(measure))
            by_subtask = [pearson(*pair) for pair in zip(values_NG.T.numpy(), drops_NG.T, strict=True)]
            yield {
                "experiment": item.part.experiment,
                "checkpoint": item.part.checkpoint.name,
                "draws": len(predicted_N),
                "form": form,
                "projection": projection,
                "measure": measure,
                "pearson": pearson(predicted_N, real_N),
                "spearman": spearman(predicted_N, real_N),
                "mean_pearson_of_subtasks": float(np.nanmean(by_subtask)) if np.isfinite(by_subtask).any() else None,
                "deviation": float(exact_N.std()),
                "projection_error": float((predicted_N - exact_N).std()),
            }


def by_checkpoints(
    singles: Sequence[Measured], predicted: Sequence[Measured], projection: str, form: str
) -> Iterable[Record]:
    """How the scores of the first n checkpoints, and of each alone, agree with the loss drops at all of them summed.

    `singles` has the drops, `predicted` the products under that projection, both in the order of the checkpoints.
    """
    if len(singles) < 2 or len(predicted) < len(singles):
        return
    count = min(item.part.draws for item in singles)
    real_N = np.sum([item.mean_drops[:count] for item in singles], axis=0)
    for name in dict.fromkeys((form, "reference", "adamw", "sgd")):
        for measure in MEASURES:
            weighted = [
                item.part.checkpoint.learning_rate
                * item.whole(item.products(name, projection).measure(measure))[:count]
                for item in predicted
            ]
            for used in range(1, len(singles) + 1):
                yield {
                    "form": name,
                    "projection": projection,
                    "measure": measure,
                    "checkpoints": used,
                    "draws": count,
                    "pearson_of_first": pearson(np.sum(weighted[:used], axis=0), real_N),
                    "pearson_of_last": pearson(np.sum(weighted[-used:], axis=0), real_N),
                    "pearson_of_that_alone": pearson(weighted[used - 1], real_N),
                }


def shared_terms(item: Measured) -> Iterable[Record]:
    """How much of the cosine scores' variance over rows comes from β1·m, and what is left without it."""
    for form in ("reference", "adamw"):
        whole, own = item.products(form), item.products(form + WITHOUT_MOMENTUM)
        score_N = item.whole(whole.measure("cosine_of_mean"))
        own_N = item.whole(own.dots_NG / whole.norms_N[:, None])
        yield {
            "checkpoint": item.part.checkpoint.name,
            "form": form,
            "share_of_variance": share_of_variance(score_N - own_N, score_N),
            "mean_over_deviation": float(score_N.mean() / score_N.std()),
            "pearson_with_scores_without": pearson(score_N, item.whole(own.measure("cosine_of_mean"))),
        }


def stabilities(check: InfluenceCheck, item: Measured) -> Iterable[Record]:
    """Overlap of the best 5 % of the rows with those by exact scores, and between projection seeds.

    For every form besides: how many rows have the commonest best subtask, which β1·m may decide for all of them.
    """
    form, how = check.settings.adam, check.settings.score

    def scored(name: str, projection: str = EXACT) -> tuple[Tensor, Tensor]:
        return combined(on_one_scale(item.products(name, projection).measure(how.subtasks), how), how.combine)

    def best(name: str, projection: str) -> set[int]:
        return top_rows(scored(name, projection)[0], TOP_FRACTION)

    exact = best(form, EXACT)
    facts = {"rows": item.part.draws, "top": len(exact), "checkpoint": item.part.checkpoint.name}
    for name in DIRECTIONS:
        _, best_N = scored(name)
        yield {
            **facts,
            "form": name,
            "projection": EXACT,
            "overlap_with_exact": overlap(best(name, EXACT), exact),
            "commonest_best_subtask": float(best_N.bincount().max()) / len(best_N),
        }
    for projection, names in _over_seeds(item.part).items():
        tops = [best(form, name) for name in names]
        between = [overlap(*pair) for pair in itertools.combinations(tops, 2)]
        yield {
            **facts,
            "form": form,
            "projection": projection,
            "overlap_with_exact": float(np.mean([overlap(top, exact) for top in tops])),
            "overlap_between_seeds": float(np.mean(between)) if between else None,
        }


def _over_seeds(part: Part) -> dict[str, list[str]]:
    """The names of a part's projections by kind and K, those as stored apart."""
    found: dict[str, list[str]] = {}
    for projection in part.projections:
        name, unseeded = projection_name(projection), f"{projection.kind}/{projection.dim}"
        found.setdefault(unseeded, []).append(name)
        if name in part.quantised:
            dtype = part.quantised[name]
            found.setdefault(f"{unseeded}/{dtype}", []).append(stored_name(name, dtype))
    return found


def plot(check: InfluenceCheck, measured: Mapping[str, Sequence[Measured]]) -> None:
    """Predicted against real loss drops, a panel a target and experiment."""
    from matplotlib.figure import Figure

    main = next(iter(measured.values()))[0].part.checkpoint
    shown = {
        target: [item for item in items if "drops" in item.figures.tensors and item.part.checkpoint == main]
        for target, items in measured.items()
    }
    num_rows = max(len(items) for items in shown.values())
    figure = Figure(figsize=(4 * len(shown), 3.2 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, len(shown), squeeze=False)
    for column, (target, items) in enumerate(shown.items()):
        for row, item in enumerate(items):
            _scatter(panels[row][column], target, item, check.settings.adam)
    with atomic_path(check.run.influence_check.parent / "influence.png") as path:
        figure.savefig(path, dpi=120, format="png")


def _scatter(axes: Any, target: str, item: Measured, form: str) -> None:
    rate = item.figures.facts["learning_rate"]
    for name in dict.fromkeys((form, "adamw")):
        predicted_N = rate * item.whole(item.products(name).dots_NG)
        axes.scatter(predicted_N, item.mean_drops, s=9, label=f"{name}: {pearson(predicted_N, item.mean_drops):.2f}")
    axes.axline((0, 0), slope=1, color="grey", linewidth=0.5)
    axes.set_title(f"{target}, {item.part.experiment}", fontsize=9)
    axes.set_xlabel("predicted loss drop, η⟨Γ, g⟩", fontsize=8)
    axes.set_ylabel("real loss drop, nats", fontsize=8)
    axes.legend(fontsize=7)
