"""The closing summary of a run: rows read, set aside and selected, by source, and the time of each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradsift.encoding import Corpus
from gradsift.machine import MANIFEST, RunFolder, duration, read_record
from gradsift.selection import SelectConfig

MAX_REASONS = 8
"""Reasons for rows set aside that are shown; the file lists all."""
SELECTION_KEYS = ("per_source", "kept_out", "num_selected")


def summary(run: RunFolder, targets: Sequence[str], select: SelectConfig, seconds: Mapping[str, float]) -> str:
    """What the run folder holds, as text for the terminal."""
    pool, name = Corpus(run.pool), select.label
    selections = {
        target: read_record(run.selection(target, name).with_suffix(".json"), SELECTION_KEYS).facts
        for target in targets
        if run.selection(target, name).with_suffix(".json").is_file()
    }
    parts = [
        _pool_lines(pool, run),
        _target_lines(run, targets, select.methods),
        _table(pool, selections),
        [line for target in selections for line in _kept_out_lines(run, target, selections[target])],
        [f"{target}: {run.selection(target, name)}{_drawn(selections[target])}" for target in selections],
        [line for target in selections for line in _trained_lines(run, target, name)],
        [line for target in targets for line in _evaluated_lines(run, target, name)],
        ["time: " + ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())],
    ]
    return "\n".join(line for part in parts for line in part)


def _pool_lines(pool: Corpus, run: RunFolder) -> list[str]:
    aside = pool.num_read - pool.num_rows
    lines = [f"pool: {pool.num_read:,} rows read, {aside:,} set aside, {pool.manifest['num_tokens']:,} tokens"]
    reasons = pool.manifest["set_aside"]
    lines += [f"  {count:,} × {reason}" for reason, count in list(reasons.items())[:MAX_REASONS]]
    lines += ["  …"] if len(reasons) > MAX_REASONS else []
    return lines + ([f"  listed in {run.pool / 'set_aside.jsonl'}"] if aside else [])


def _drawn(selection: Mapping[str, Any]) -> str:
    count = selection.get("num_random", 0)  # selections made before it was kept have none
    return f", the last {count:,} of {selection['num_selected']:,} rows at random" if count else ""


def _target_lines(run: RunFolder, targets: Sequence[str], methods: Sequence[str]) -> list[str]:
    lines = []
    for name in targets:
        corpus = Corpus(run.target(name))
        subtasks = len(set(corpus.column("subtask")))
        aside = corpus.num_read - corpus.num_rows
        lines.append(
            f"target {name}: {corpus.num_rows} examples of {subtasks} subtask{'s' if subtasks > 1 else ''}"
            + (f", {aside} set aside (listed in {corpus.folder / 'set_aside.jsonl'})" if aside else "")
        )
        cut = corpus.manifest.get("lost_beginning", [])  # folders made before it was kept have none
        if cut:
            lines.append(
                f"  {len(cut)} too long, without their beginning: {', '.join(cut[:3])}{' …' if cut[3:] else ''}"
            )
        facts = [_facts(run.scores(name, method).with_suffix(".json")) for method in methods]
        unselectable = max(item.get("num_unselectable", 0) for item in facts)
        if unselectable:
            lines.append(f"  {unselectable} pool rows with zero or non-finite features, never selected")
        lines += [
            f"  {item['num_candidates']:,} pool rows are candidates (features.candidates), others unscored"
            for item in facts
            if "num_candidates" in item
        ]
    return lines


def _facts(scores: Path) -> Mapping[str, Any]:
    return read_record(scores, ("num_unselectable",)).facts if scores.is_file() else {}


def _trained_lines(run: RunFolder, target: str, selection: str) -> list[str]:
    folder = run.model(target, selection)
    if not (folder / MANIFEST).is_file():
        return []
    facts = read_record(folder / MANIFEST, ("num_rows", "loss")).facts
    return [f"{target}: {folder}, trained on {facts['num_rows']:,} rows, loss {facts['loss']:.3f} in the last epoch"]


def _evaluated_lines(run: RunFolder, target: str, selection: str) -> list[str]:
    path = run.evaluation(target, selection)
    if not path.is_file():
        return []
    metrics = read_record(path, ("metrics", "answer_loss", "counts")).facts
    figures = [f"{name} {100 * value:.1f} %" for name, value in metrics["metrics"].items()]
    loss = metrics["answer_loss"]["nats_per_token"]
    figures += [] if loss is None else [f"answer loss {loss:.3f} nats a token"]
    questions = metrics["counts"]["questions"]
    return [f"{target}: {', '.join(figures)} on {questions:,} held-out questions ({path})"]


def _table(pool: Corpus, selections: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Rows by source: read, set aside, and selected for each target."""
    header = ["source", "read", "set aside", *(f"for {target}" for target in selections)]
    rows = []
    for source, counts in pool.manifest["per_source"].items():
        chosen = [_selected(selections[target], source) for target in selections]
        rows.append([source, *(f"{count:,}" for count in (counts["read"], counts["set_aside"], *chosen))])
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [header, *rows]
    ]


def _kept_out_lines(run: RunFolder, target: str, selection: Mapping[str, Any]) -> list[str]:
    """The rows that were passed over on the way to a selection, by reason."""
    reasons = {
        "overlap_ngrams": f"× text of its items (listed in {run.overlap(target)})",
        "deduplicate": "× like a row chosen before",
        "per_source_max": "× source at its most",
    }
    counts = selection["kept_out"]
    listed = [f"{counts[key]:,} {reason}" for key, reason in reasons.items() if key in counts]
    return [f"kept out for {target}: {', '.join(listed)}"] if listed else []


def _selected(selection: Mapping[str, object], source: str) -> int:
    per_source = selection["per_source"]
    assert isinstance(per_source, Mapping)
    return int(per_source.get(source, 0))
