"""`compare`: makes the cells that are missing, one after the other, and writes the table and plots of those there are.

Each seed is a run folder below RUN/comparison, which shares the encoded pool and targets of RUN. A cell is done when
its record is written, and is made again when what it comes from has changed. Processes that are given different seeds
may work side by side.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from gradsift.artifact import MANIFEST, fingerprint, read_json, write_json
from gradsift.baselines import BASELINES, REPRESENTATIONS
from gradsift.comparing import ArmConfig
from gradsift.comparison.costs import Watch, less_flops, representation_flops, training_flops
from gradsift.comparison.outcomes import Outcome
from gradsift.comparison.plan import Cell, cell_config, cells, comparison_folder, seed_config, seed_folder
from gradsift.comparison.plots import draw
from gradsift.comparison.table import write_table
from gradsift.config import RunConfig, keep_config
from gradsift.pipeline import (
    encode_stage,
    evaluate_stage,
    evaluation_of,
    features_stage,
    score_stage,
    select_stage,
    train_stage,
    warmup_stage,
)
from gradsift.runtime import duration, locked
from gradsift.stages.evaluate import PREDICTIONS_FILE
from gradsift.stages.select import read_selection

logger = logging.getLogger(__name__)

SHARED_FOLDERS = ("pool", "targets")


def compare(config: RunConfig) -> str:
    """Make what is missing; the table as text, and where everything stands."""
    with locked(config.run.path):
        keep_config(config)
        evaluation_of(config).require_inputs(config.targets)
        encode_stage(config)
    planned = list(cells(config))
    left = [cell for cell in planned if not _is_done(config, cell)]
    logger.info("compare: %d of %d cells are done", len(planned) - len(left), len(planned))
    start = time.monotonic()
    for count, cell in enumerate(left, start=1):
        _do(config, cell)
        write_table(config, finished(config))
        rest = (time.monotonic() - start) / count * (len(left) - count)
        logger.info("compare: %d of %d cells, about %s left", count, len(left), duration(rest))
    outcomes = finished(config)
    draw(config, outcomes)
    return write_table(config, outcomes)


def finished(config: RunConfig) -> dict[Cell, Outcome]:
    """The config's cells that are done, also those that other processes made."""
    return {cell: _outcome(config, cell) for cell in cells(config) if _is_done(config, cell)}


def _outcome(config: RunConfig, cell: Cell) -> Outcome:
    predictions = seed_folder(config, cell.seed).evaluation(cell.target, cell.name).with_suffix("") / PREDICTIONS_FILE
    return Outcome(read_json(_record_path(config, cell)), predictions)


def _record_path(config: RunConfig, cell: Cell) -> Path:
    return comparison_folder(config) / "cells" / f"seed-{cell.seed}" / cell.target / f"{cell.name}.json"


def _is_done(config: RunConfig, cell: Cell) -> bool:
    path = _record_path(config, cell)
    return path.is_file() and read_json(path)["inputs"] == _inputs(config, cell)


def _inputs(config: RunConfig, cell: Cell) -> str:
    """What decides a cell, as far as the config says it; a changed pool is refused when it is encoded."""
    made_with = cell_config(config, cell).model_dump(mode="json", exclude={"run_dir", "compare", "executor"})
    return fingerprint(made_with)


def _do(config: RunConfig, cell: Cell) -> None:
    """Make a cell in its seed's run folder, and write its record."""
    seeded, own = seed_config(config, cell.seed), cell_config(config, cell)
    logger.info("compare: seed %d, %s, %s", cell.seed, cell.target, cell.name)
    with locked(own.run.path):
        _share(config, seeded)
        watch = Watch(own.run.path)
        if cell.arm is None:
            evaluation_of(own).evaluate_base(own.targets[0], cell.name)
        else:
            _prepare(seeded, cell.arm, watch)
            _train_and_evaluate(own, cell, watch)
        write_json(_record_path(config, cell), {"inputs": _inputs(config, cell), **_record(seeded, own, cell, watch)})


def _share(config: RunConfig, seeded: RunConfig) -> None:
    """The encoded pool and targets, which no seed changes, by links."""
    for name in SHARED_FOLDERS:
        link = seeded.run.path / name
        if not link.is_symlink():
            link.symlink_to(Path("..") / ".." / name, target_is_directory=True)
    keep_config(seeded)


def _prepare(seeded: RunConfig, arm: ArmConfig, watch: Watch) -> None:
    """What all targets share: warmup and features, where the method needs them."""
    chosen = seeded.model_copy(update={"select": seeded.select.model_copy(update={"method": arm.method})})
    with watch.timed("warmup"):
        warmup_stage(chosen)
    with watch.timed(_features_piece(arm)):
        features_stage(chosen)


def _features_piece(arm: ArmConfig) -> str:
    return f"features/{arm.method}"


def _train_and_evaluate(own: RunConfig, cell: Cell, watch: Watch) -> None:
    for piece, stage in STAGES.items():
        with watch.timed(_piece(piece, cell)):
            stage(own)


STAGES = {"score": score_stage, "select": select_stage, "train": train_stage, "evaluate": evaluate_stage}
"""What a cell takes on its own."""


def _piece(stage: str, cell: Cell) -> str:
    return f"{stage}/{cell.target}/{cell.name}"


def _record(seeded: RunConfig, own: RunConfig, cell: Cell, watch: Watch) -> dict[str, Any]:
    """What the table, the differences and the plots are made of."""
    facts: dict[str, Any] = {"seed": cell.seed, "target": cell.target, "label": cell.label, "transfer": cell.transfer}
    facts |= _figures(own, cell)
    if cell.arm is None:
        return facts
    selection = read_selection(own.run, cell.target, cell.name)
    return {
        **facts,
        "method": cell.arm.method,
        "num_selected": selection["num_selected"],
        "num_tokens": selection["num_tokens"],
        "selection": _selection_cost(seeded, cell, watch),
        "training": _training_cost(own, cell, watch),
    }


def _figures(own: RunConfig, cell: Cell) -> dict[str, Any]:
    """The held-out figures; None where nothing is held out."""
    path = own.run.evaluation(cell.target, cell.name)
    if not path.is_file():
        return {"metric_name": None, "metric": None, "answer_loss": None, "num_items": 0}
    metrics = read_json(path)
    name = metrics["metric"]
    return {
        "metric_name": name if name in metrics["metrics"] else None,
        "metric": metrics["metrics"].get(name),
        "answer_loss": metrics["answer_loss"]["nats_per_token"],
        "num_items": metrics["counts"]["questions"],
    }


def _selection_cost(seeded: RunConfig, cell: Cell, watch: Watch) -> dict[str, float]:
    """Warmup and features are made once for all targets, and counted in full for each."""
    assert cell.arm is not None
    pieces = [_piece("score", cell), _piece("select", cell)]
    flops = 0.0
    if cell.arm.method not in BASELINES:
        pieces.append(_features_piece(cell.arm))
    if cell.arm.method == "less":
        pieces.append("warmup")
        flops = less_flops(seeded)
    elif cell.arm.method in REPRESENTATIONS:
        flops = representation_flops(seeded)
    return {"seconds": watch.of(*pieces), "flops": flops}


def _training_cost(own: RunConfig, cell: Cell, watch: Watch) -> dict[str, float]:
    """Seconds by the clock, or as the model's manifest says them where it was copied from a twin."""
    folder = own.run.model(cell.target, cell.name)
    seconds = max(watch.of(_piece("train", cell)), float(read_json(folder / MANIFEST)["seconds"]))
    return {"seconds": seconds, "flops": training_flops(own, folder)}
