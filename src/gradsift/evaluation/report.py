"""The evaluation report: tables in Markdown of every metrics file in an evaluation folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradsift.machine import atomic_open, read_record, table

KEYS = ("metrics", "metric", "averaged_over", "subtasks", "answer_loss", "counts")
REPORT_FILE = "report.md"
HARNESS_PATTERN = "*/*/harness.json"

Metrics = Mapping[str, Any]


def write_report(folder: Path) -> Path:
    """Write `report.md` into the folder (RUN/evaluation) from all metrics in it; its path."""
    path = folder / REPORT_FILE
    content = "\n".join(report_lines(folder)).encode() + b"\n"
    if not path.is_file() or path.read_bytes() != content:
        with atomic_open(path) as file:
            file.write(content)
    return path


def report_lines(folder: Path) -> list[str]:
    """A section per target: a row per method, then a row per subtask; metrics in percent, losses in nats a token.

    Read from <folder>/<target>/<method>.json and, for lm-evaluation-harness, <folder>/<target>/<method>/harness.json.
    """
    lines = ["# Evaluation", ""]
    for target in sorted(path for path in folder.iterdir() if path.is_dir()):
        methods = {path.stem: read_record(path, KEYS).facts for path in sorted(target.glob("*.json"))}
        if methods:
            lines += _section(target.name, methods)
    return lines + _harness_lines(folder)


def _section(target: str, methods: Mapping[str, Metrics]) -> list[str]:
    names = list(next(iter(methods.values()))["metrics"])
    averaged_over = next(iter(methods.values()))["averaged_over"]
    heading = ["method", *names, "answer loss", "questions", "lost shots", "cut"]
    rows = [[method, *_values(metrics, names), *_counts(metrics)] for method, metrics in methods.items()]
    lines = [f"## {target}", "", f"Means over {averaged_over}.", "", *table(heading, rows), ""]
    subtasks = sorted({name for metrics in methods.values() for name in metrics["subtasks"]})
    if len(subtasks) > 1:
        lines += [*table(["subtask", *methods], [_subtask_row(name, methods) for name in subtasks]), ""]
    return lines


def _values(figures: Metrics, names: Sequence[str]) -> list[str]:
    values = [figures["metrics"].get(name) for name in names]
    return [*("–" if value is None else f"{100 * value:.1f}" for value in values), _loss(figures)]


def _loss(figures: Metrics) -> str:
    loss = figures["answer_loss"]["nats_per_token"]
    return "–" if loss is None else f"{loss:.3f}"


def _counts(metrics: Metrics) -> list[str]:
    counts = metrics["counts"]
    return [f"{counts['questions']:,}", f"{counts['with_lost_shots']:,}", f"{counts['cut']:,}"]


def _subtask_row(subtask: str, methods: Mapping[str, Metrics]) -> list[str]:
    """The main metric of each method on the subtask; the answer loss where there is no other."""
    cells = []
    for metrics in methods.values():
        figures = metrics["subtasks"].get(subtask)
        if figures is None:
            cells.append("–")
        elif metrics["metric"] in figures["metrics"]:
            cells.append(f"{100 * figures['metrics'][metrics['metric']]:.1f}")
        else:
            cells.append(_loss(figures))
    return [subtask, *cells]


def _harness_lines(folder: Path) -> list[str]:
    rows = []
    for path in sorted(folder.glob(HARNESS_PATTERN)):
        for task, metrics in sorted(read_record(path, ("results",)).facts["results"].items()):
            for name, value in sorted(metrics.items()):
                if isinstance(value, float) and "stderr" not in name:
                    rows.append([path.parent.parent.name, path.parent.name, task, name, f"{value:.4f}"])
    if not rows:
        return []
    return ["## lm-evaluation-harness", "", *table(["target", "method", "task", "metric", "value"], rows), ""]
