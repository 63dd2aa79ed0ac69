"""The influence check's report as tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradsift.influence_check.experiments import EXACT
from gradsift.influence_check.predictions import DIRECTIONS, WITHOUT_MOMENTUM
from gradsift.machine import table

Record = dict[str, Any]
"""A part of the report, as JSON values."""


def report_lines(report: Record) -> list[str]:
    """The report as Markdown."""
    lines = ["# Influence against real optimizer steps", "", *_checkpoint_lines(report), ""]
    for target, found in report["targets"].items():
        lines += [
            f"## {target}",
            "",
            f"Loss on {found['examples']} of {found['of']} examples ({found['tokens']:,} tokens, {found['subtasks']} "
            "subtasks). Cells: Pearson (Spearman) of predicted and real loss drop.",
            "",
            *_agreement_lines(found, report["main_checkpoint"]),
            *_projection_lines(found),
            *_number_lines(found),
            *_shared_lines(found),
            *_stability_lines(found),
        ]
    return lines


def _checkpoint_lines(report: Record) -> list[str]:
    heading = ["checkpoint", "learning rate", "clipped", "ε rules reference", "ε rules adamw"]
    rows = [
        [
            item["name"],
            f"{item['learning_rate']:.3g}",
            f"{100 * item['clipped']:.0f} %",
            *(f"{100 * item['epsilon'][form]:.2f} %" for form in ("reference", "adamw")),
            *(_number(item["pairwise_cosine"][name]) for name in DIRECTIONS),
        ]
        for item in report["checkpoints"]
    ]
    return table([*heading, *(f"cosine {name}" for name in DIRECTIONS)], rows)


def _agreement_lines(found: Record, main: str) -> list[str]:
    """Every experiment at the main checkpoint, then single examples at the others."""
    columns: dict[str, dict[str, str]] = {}
    elsewhere: dict[str, dict[str, str]] = {}
    for item in found["agreement"]:
        at_main = item["checkpoint"] == main
        table_of = columns if at_main else elsewhere
        title = f"{item['experiment'] if at_main else item['checkpoint']} {item['measure']}"
        title += "" if item["projection"] == EXACT else f", {item['projection']}"
        cell = f"{_number(item['pearson'])} ({_number(item['spearman'])})"
        table_of.setdefault(title, {})[item["form"]] = cell
    lines = [f"At {main}:", "", *_table_of(columns, "Γ"), ""]
    if elsewhere:
        lines += ["Single examples at the other checkpoints:", "", *_table_of(elsewhere, "Γ"), ""]
    return lines


def _table_of(columns: Mapping[str, Mapping[str, str]], corner: str) -> list[str]:
    """A table from cells by column and row."""
    names = dict.fromkeys(name for cells in columns.values() for name in cells)
    rows = [[name, *(cells.get(name, "–") for cells in columns.values())] for name in names]
    return table([corner, *columns], rows)


def _projection_lines(found: Record) -> list[str]:
    """Single examples at the main checkpoint, projected: a row a projection, cells by form."""
    lines: list[str] = []
    for measure in ("mean_of_cosines", "dot"):
        columns: dict[str, dict[str, str]] = {}
        for item in found["projected"]:
            if item["measure"] == measure and not item["form"].endswith(WITHOUT_MOMENTUM):
                cell = f"{_number(item['pearson'])} ({_number(item['spearman'])})"
                columns.setdefault(item["form"], {})[item["projection"]] = cell
        if columns:
            lines += [f"Single examples, {measure}, by projection (kind/K/seed):", "", *_table_of(columns, ""), ""]
    return lines


def _number_lines(found: Record) -> list[str]:
    rows = [
        [
            item["form"],
            item["projection"],
            item["measure"],
            str(item["checkpoints"]),
            *(_number(item[f"pearson_of_{which}"]) for which in ("first", "last", "that_alone")),
        ]
        for item in found["checkpoints"]
    ]
    if not rows:
        return []
    heading = ["Γ", "projection", "measure", "n", "first n checkpoints", "last n", "checkpoint n alone"]
    return ["Pearson with the loss drops at all checkpoints, summed:", "", *table(heading, rows), ""]


def _shared_lines(found: Record) -> list[str]:
    rows = [
        [
            item["checkpoint"],
            item["form"],
            _number(item["share_of_variance"]),
            f"{item['mean_over_deviation']:.1f}",
            _number(item["pearson_with_scores_without"]),
        ]
        for item in found["shared_term"]
    ]
    heading = ["checkpoint", "Γ", "share of the scores' variance from β1·m", "mean / deviation", "Pearson without it"]
    return [*table(heading, rows), ""]


def _stability_lines(found: Record) -> list[str]:
    figures = ("overlap_with_exact", "overlap_between_seeds", "commonest_best_subtask")
    rows = [
        [item["form"], item["projection"], *(_number(item.get(name)) for name in figures)]
        for item in found["stability"]
    ]
    if not rows:
        return []
    first = found["stability"][0]
    title = f"Best {first['top']} of {first['rows']} rows at {first['checkpoint']}, against those by the run's exact Γ:"
    heading = ["Γ", "projection", "overlap with the exact", "between seeds", "rows of the commonest best subtask"]
    return [title, "", *table(heading, rows), ""]


def _number(value: float | None) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.2f}"
