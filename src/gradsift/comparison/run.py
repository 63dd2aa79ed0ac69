"""`compare`: makes the cells that are missing, one after the other, and writes the table and plots of those there are.

Each seed is a run folder below RUN/comparison; an arm whose features or scores are others than the run's has one beside
it (`preparation`: what they share). A cell is done when its record is
written, and is made again when what it comes from has changed. Processes that are given different seeds may work side
by side.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gradsift.baselines import TOV
from gradsift.comparison.costs import Watch, training_flops
from gradsift.comparison.outcomes import Outcome
from gradsift.comparison.plan import (
    Cell,
    cell_config,
    cell_folder,
    cells,
    comparison_folder,
    folder_config,
    seed_config,
)
from gradsift.comparison.plots import draw
from gradsift.comparison.preparation import prepare, prepared_cost, share_data
from gradsift.comparison.table import write_table
from gradsift.config import RunConfig, keep_config, require_kept
from gradsift.encoding import Corpus
from gradsift.errors import RunFolderError
from gradsift.evaluation import PREDICTIONS_FILE
from gradsift.machine import (
    MANIFEST,
    duration,
    fingerprint,
    finished_facts,
    locked,
    read_record,
    remove_record,
    write_record,
)
from gradsift.model import ModelConfig, model_fingerprint
from gradsift.pipeline import (
    encode_stage,
    evaluate_stage,
    evaluation_of,
    require_embedder,
    score_stage,
    select_stage,
    train_stage,
    write_environment,
)
from gradsift.stages import read_selection

logger = logging.getLogger(__name__)

DECISIVE = {
    *("seed", "model", "pool", "targets", "encoding", "warmup"),
    *("features", "baselines", "score", "select", "train", "evaluate"),
}
"""Sections that decide a cell."""
RECORD_KEYS = ("inputs", "seed", "target", "metric_name", "metric", "answer_loss")
NEWER = (
    *(("supervise", "all"), ("on_error", "set_aside"), ("gguf_file", None), ("random_share", 0.0)),
    *(("normalize", "none"), ("less_strategy", "top"), ("candidates", None)),
)
"""Keys that came later, and what was done before."""


def compare(config: RunConfig) -> str:
    """Make what is missing; the table as text, and where everything stands."""
    with locked(config.run.path, wait=True):
        keep_config(config)
        write_environment(config)
        evaluation_of(config).require_inputs(config.targets)
        encode_stage(config)
    _fingerprint_of_model.cache_clear()
    planned, outcomes = list(cells(config)), finished(config)
    left = [cell for cell in planned if cell not in outcomes]
    require_embedder(cell_config(config, cell) for cell in left if cell.arm is not None)
    logger.info("compare: %d of %d cells are done", len(outcomes), len(planned))
    _require_folders_kept(config, left)
    start = time.monotonic()
    for count, cell in enumerate(left, start=1):
        _do(config, cell)
        outcomes[cell] = _outcome(config, cell)
        write_table(config, {cell: outcomes[cell] for cell in planned if cell in outcomes})
        rest = (time.monotonic() - start) / count * (len(left) - count)
        logger.info("compare: %d of %d cells, about %s left", count, len(left), duration(rest))
    outcomes = {cell: outcomes[cell] for cell in planned}
    draw(config, outcomes)
    return write_table(config, outcomes)


def _require_folders_kept(config: RunConfig, left: Sequence[Cell]) -> None:
    """Refuse what the folders of seeds and arms weren't made with, before any of it is made again."""
    for seed in dict.fromkeys(cell.seed for cell in left):
        require_kept(seed_config(config, seed))
    arms = {(cell.seed, cell.arm.label): cell.arm for cell in left if cell.arm is not None}
    for (seed, _), arm in arms.items():
        require_kept(folder_config(config, seed, arm), "give the arm another `name`")


def finished(config: RunConfig) -> dict[Cell, Outcome]:
    """The config's cells that are done."""
    return {cell: _outcome(config, cell) for cell in cells(config) if _is_done(config, cell)}


def finished_table(config: RunConfig) -> str:
    """The table of the cells that are done, as text, from their records and predictions alone.

    What they were made from isn't looked at: neither data nor models need be here. Raises RunFolderError where no cell
    is done.
    """
    planned = list(cells(config))
    outcomes = {cell: _outcome(config, cell) for cell in planned if _facts_of(config, cell) is not None}
    if not outcomes:
        raise RunFolderError(f"{comparison_folder(config)}: no cell is done with these settings: leave --table out")
    logger.info("compare: %d of %d cells are done", len(outcomes), len(planned))
    return write_table(config, outcomes)


def _outcome(config: RunConfig, cell: Cell) -> Outcome:
    return Outcome(read_record(_record_path(config, cell), RECORD_KEYS).facts, _predictions_path(config, cell))


def _predictions_path(config: RunConfig, cell: Cell) -> Path:
    return cell_folder(config, cell).evaluation(cell.target, cell.name).with_suffix("") / PREDICTIONS_FILE


def _record_path(config: RunConfig, cell: Cell) -> Path:
    return comparison_folder(config) / "cells" / f"seed-{cell.seed}" / cell.target / f"{cell.name}.json"


def _is_done(config: RunConfig, cell: Cell) -> bool:
    """Whether a record is of these settings and, where it says so, of this data and base, with its predictions."""
    facts = _facts_of(config, cell)
    return facts is not None and facts.get("made_from") in (None, _made_from(config, cell))


def _facts_of(config: RunConfig, cell: Cell) -> Mapping[str, Any] | None:
    """What a record of these settings says; None where there is none, or its predictions aren't as they were."""
    facts = finished_facts(_record_path(config, cell), [], RECORD_KEYS)
    return facts if facts is not None and facts["inputs"] == _inputs(config, cell) else None


def _inputs(config: RunConfig, cell: Cell) -> str:
    """What decides a cell, as far as the config says it; a changed pool is refused when it is encoded."""
    own = cell_config(config, cell)
    settings = own.model_dump(mode="json", include=DECISIVE)
    for key in own.select.idle_keys:
        del settings["select"][key]
    if own.features.representation_dtype == own.features.store_dtype:  # as before there was the key
        del settings["features"]["representation_dtype"]
    if "less" not in own.select.methods:
        del settings["features"]["candidates"]
    if TOV not in (*own.select.methods, (settings["features"].get("candidates") or {}).get("method")):
        del settings["baselines"]["tov"]
    return fingerprint(_as_before(settings))


def _as_before(value: Any) -> Any:
    """The settings without newer keys that stand at what was done before there were any: cells made then stay."""
    if isinstance(value, Mapping):
        return {key: _as_before(item) for key, item in value.items() if (key, item) not in NEWER}
    return [_as_before(item) for item in value] if isinstance(value, list) else value


def _made_from(config: RunConfig, cell: Cell) -> list[str]:
    """What decides a cell besides its settings: the encoded pool and target, and the weights of the models."""
    corpora = [Corpus(folder).manifest["fingerprint"] for folder in (config.run.pool, config.run.target(cell.target))]
    own = cell_config(config, cell)
    return [*corpora, *(_fingerprint_of_model(model) for model in (own.model, own.target_model))]


@cache
def _fingerprint_of_model(model: ModelConfig) -> str:
    return model_fingerprint(model)


def _do(config: RunConfig, cell: Cell) -> None:
    """Make a cell in its seed's run folder, or its arm's beside that, and write its record."""
    seeded, own = seed_config(config, cell.seed), cell_config(config, cell)
    logger.info("compare: seed %d, %s, %s", cell.seed, cell.target, cell.name)
    remove_record(_record_path(config, cell))
    with locked(seeded.run.path):  # and whatever stands beside it for an arm
        share_data(config, cell)
        watch = Watch(own.run.path)
        if cell.arm is None:
            evaluation_of(own).evaluate_base(own.targets[0], cell.name)
        else:
            prepare(config, cell)
            _train_and_evaluate(own, cell, watch)
        facts = {"inputs": _inputs(config, cell), "made_from": _made_from(config, cell)}
        predictions = [path for path in (_predictions_path(config, cell),) if path.is_file()]
        write_record(_record_path(config, cell), {**facts, **_record(config, own, cell, watch)}, predictions)


def _train_and_evaluate(own: RunConfig, cell: Cell, watch: Watch) -> None:
    for piece, stage in STAGES.items():
        with watch.timed(_piece(piece, cell)):
            stage(own)


STAGES = {"score": score_stage, "select": select_stage, "train": train_stage, "evaluate": evaluate_stage}
"""What a cell takes on its own."""


def _piece(stage: str, cell: Cell) -> str:
    return f"{stage}/{cell.target}/{cell.name}"


def _record(config: RunConfig, own: RunConfig, cell: Cell, watch: Watch) -> dict[str, Any]:
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
        "selection": _selection_cost(config, cell, watch),
        "training": _training_cost(own, cell, watch),
    }


def _figures(own: RunConfig, cell: Cell) -> dict[str, Any]:
    """The held-out figures; None where nothing is held out."""
    path = own.run.evaluation(cell.target, cell.name)
    if not path.is_file():
        return {"metric_name": None, "metric": None, "answer_loss": None, "num_items": 0}
    metrics = read_record(path, ("metrics", "metric", "answer_loss", "counts")).facts
    name = metrics["metric"]
    return {
        "metric_name": name if name in metrics["metrics"] else None,
        "metric": metrics["metrics"].get(name),
        "answer_loss": metrics["answer_loss"]["nats_per_token"],
        "num_items": metrics["counts"]["questions"],
    }


def _selection_cost(config: RunConfig, cell: Cell, watch: Watch) -> dict[str, float | None]:
    """Seconds and operations of what the selection took, the shared work counted in full; None: not known."""
    seconds, flops = prepared_cost(config, cell)
    return {"seconds": seconds + watch.of(_piece("score", cell), _piece("select", cell)), "flops": flops}


def _training_cost(own: RunConfig, cell: Cell, watch: Watch) -> dict[str, float]:
    """Seconds by the clock, or as the model's manifest says them where it was copied from a twin."""
    folder = own.run.model(cell.target, cell.name)
    seconds = max(watch.of(_piece("train", cell)), float(read_record(folder / MANIFEST, ("seconds",)).facts["seconds"]))
    return {"seconds": seconds, "flops": training_flops(own, folder)}
