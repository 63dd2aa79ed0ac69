"""`compare`: makes the cells that are missing, one after the other, and writes the table and plots of those there are.

Each seed is a run folder below RUN/comparison, which shares the encoded pool and targets of RUN; an arm whose features
or scores are others than the run's has one beside it, which shares the seed's warmup. A cell is done when its record is
written, and is made again when what it comes from has changed. Processes that are given different seeds may work side
by side.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gradsift.baselines import BASELINES, EMBEDDING, REPRESENTATIONS, TOV
from gradsift.comparison.costs import Watch, less_flops, representation_flops, tov_flops, training_flops
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
from gradsift.comparison.table import write_table
from gradsift.config import RunConfig, keep_config, require_kept
from gradsift.encoding import Corpus
from gradsift.errors import RunFolderError
from gradsift.evaluation import PREDICTIONS_FILE
from gradsift.machine import (
    MANIFEST,
    RunFolder,
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
    features_stage,
    require_embedder,
    score_stage,
    select_stage,
    train_stage,
    warmup_stage,
    write_environment,
)
from gradsift.stages import read_selection

logger = logging.getLogger(__name__)

SHARED_FOLDERS = ("pool", "targets")
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
SEEDLESS = (*REPRESENTATIONS, EMBEDDING)
"""Methods whose features no seed changes."""
BEFORE_TOV = "loss"
"""The method whose features are the losses that `tov` starts from."""


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
    accepted = (_inputs(config, cell), _inputs_when_both_were_said(config, cell))
    return facts if facts is not None and facts["inputs"] in accepted else None


def _inputs(config: RunConfig, cell: Cell) -> str:
    """What decides a cell, as far as the config says it; a changed pool is refused when it is encoded."""
    settings = _decisive(config, cell)
    if _alike_in_dtype(settings):
        del settings["features"]["representation_dtype"]
    return fingerprint(_as_before(settings))


def _inputs_when_both_were_said(config: RunConfig, cell: Cell) -> str | None:
    """Of records of before, where the dtype of representations stood although it is the stores'."""
    settings = _decisive(config, cell)
    return fingerprint(_as_before(settings)) if _alike_in_dtype(settings) else None


def _alike_in_dtype(settings: Mapping[str, Any]) -> bool:
    features = settings["features"]
    return bool(features["representation_dtype"] == features["store_dtype"])


def _decisive(config: RunConfig, cell: Cell) -> dict[str, Any]:
    own = cell_config(config, cell)
    settings = own.model_dump(mode="json", include=DECISIVE)
    for key in own.select.idle_keys:
        del settings["select"][key]
    if "less" not in own.select.methods:
        del settings["features"]["candidates"]
    if TOV not in (*own.select.methods, (settings["features"].get("candidates") or {}).get("method")):
        del settings["baselines"]["tov"]
    return settings


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
        for folder in (seeded, folder_config(config, cell.seed, cell.arm)):
            _link_folders(folder.run, config.run, SHARED_FOLDERS)
            keep_config(folder)
        watch = Watch(own.run.path)
        if cell.arm is None:
            evaluation_of(own).evaluate_base(own.targets[0], cell.name)
        else:
            _prepare(config, cell)
            _train_and_evaluate(own, cell, watch)
        facts = {"inputs": _inputs(config, cell), "made_from": _made_from(config, cell)}
        predictions = [path for path in (_predictions_path(config, cell),) if path.is_file()]
        write_record(_record_path(config, cell), {**facts, **_record(config, own, cell, watch)}, predictions)


def _link_folders(run: RunFolder, holder: RunFolder, names: Sequence[str]) -> None:
    """Links to those of the folders that the holder has."""
    for name in names:
        if (holder.path / name).is_dir() and run != holder:
            _link(run.path / name, holder.path / name)


def _link(link: Path, folder: Path) -> None:
    """A link that still holds when RUN is moved. Raises RunFolderError where something else is in its place."""
    if link.exists() and not link.samefile(folder):
        raise RunFolderError(f"{link}: isn't a link to {folder}: delete it, and it is made again")
    if not link.is_symlink():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(folder, link.parent), target_is_directory=True)


def _prepare(config: RunConfig, cell: Cell) -> None:
    """What cells share, where their methods need it: warmup and features; what picks candidates comes first.

    The seed's folder holds trainings, and features too, but for those that no seed changes, which RUN holds. An arm's
    own folder has links to them, and holds the features that are made otherwise than the run's.
    """
    seeded, own = seed_config(config, cell.seed), folder_config(config, cell.seed, cell.arm)
    if own.features != config.features and (own.run.path / "features").is_symlink():
        (own.run.path / "features").unlink()  # of the arm as it was before it had its own
    for method, target in _preparations(own, cell):
        if method not in SEEDLESS:
            with Watch(seeded.run.path).timed(_shared_piece("warmup", method, target)):
                warmup_stage(_narrowed(seeded, method, target))
            _link_folders(own.run, seeded.run, ("warmup", "tov"))
        holder = _holder(config, cell, method)
        with _held(config, holder), _watch_of(config, holder).timed(_shared_piece("features", method, target)):
            features_stage(_narrowed(holder, method, target))
        _link_features(config, cell, method, target)
        if _has_candidates_of_its_own(config, cell, method):
            with Watch(own.run.path).timed(_shared_piece("features", method, target)):
                features_stage(_narrowed(own, method, target))


def _narrowed(config: RunConfig, method: str, target: str | None) -> RunConfig:
    """The config for that method alone, and that target, unless it is None."""
    targets = [item for item in config.targets if target in (None, item.name)]
    select = config.select.model_copy(update={"method": method})
    return config.model_copy(update={"select": select, "targets": targets})


def _holder(config: RunConfig, cell: Cell, method: str) -> RunConfig:
    """The config of the folder that has a method's features for a cell."""
    own = folder_config(config, cell.seed, cell.arm)
    is_own = own.features != config.features
    if method != "less":
        is_own = _stored_as(own) != _stored_as(config)
    if is_own:
        return own
    return config if method in SEEDLESS else seed_config(config, cell.seed)


def _has_candidates_of_its_own(config: RunConfig, cell: Cell, method: str) -> bool:
    """Whether an arm's scores pick other candidates than the seed's, whose stores have to hold them too."""
    own = folder_config(config, cell.seed, cell.arm)
    is_shared = own.features == config.features and own.score != config.score
    return method == "less" and own.features.candidates is not None and is_shared


def _stored_as(config: RunConfig) -> tuple[str, int]:
    """What of `features` decides stores that are no gradients'."""
    return config.features.dtype_of(is_pool=True, is_representation=True), config.features.shard_rows


def _held(config: RunConfig, holder: RunConfig) -> contextlib.AbstractContextManager[None]:
    """The lock of RUN, which other processes work in, where that is the holder."""
    return locked(config.run.path, wait=True) if holder.run == config.run else contextlib.nullcontext()


def _watch_of(config: RunConfig, holder: RunConfig) -> Watch:
    """The time of features is kept with them; of those of RUN, with the comparison."""
    return Watch(comparison_folder(config) if holder.run == config.run else holder.run.path)


def _link_features(config: RunConfig, cell: Cell, method: str, target: str | None) -> None:
    """A method's features in the folders that don't hold them: the seed's, and the arm's own."""
    seeded, own, holder = (
        seed_config(config, cell.seed).run,
        folder_config(config, cell.seed, cell.arm),
        _holder(config, cell, method).run,
    )
    if holder == config.run:
        _link_stores(seeded, holder, config, method, target)
    if own.features == config.features:
        _link_folders(own.run, seeded, ("features",))
    else:
        _link_stores(own.run, holder, config, method, target)


def _link_stores(run: RunFolder, holder: RunFolder, config: RunConfig, method: str, target: str | None) -> None:
    """Links to a method's stores, of the pool and of all targets, as far as there are any."""
    if run == holder:
        return
    name = method if target is None else f"{method}/{target}"
    for link, folder in zip(_stores(run, config, name), _stores(holder, config, name), strict=True):
        if folder.is_dir():
            _link(link, folder)


def _stores(run: RunFolder, config: RunConfig, name: str) -> list[Path]:
    return [run.pool_features(name), *(run.target_features(target.name, name) for target in config.targets)]


def _preparations(config: RunConfig, cell: Cell) -> list[tuple[str, str | None]]:
    """The methods whose warmup and features a cell takes, in their order, each once: for all targets (None) or, of
    `tov`, for one: the cell's own, or each where candidates are picked by it."""
    assert cell.arm is not None
    found = [item for method in cell.arm.methods for item in _preparations_of(config, method, cell.target)]
    return list(dict.fromkeys(found))


def _preparations_of(config: RunConfig, method: str, target: str) -> list[tuple[str, str | None]]:
    candidates = config.features.candidates
    if method == TOV:
        return [(BEFORE_TOV, None), (TOV, target)]
    if method != "less" or candidates is None:
        return [(method, None)]
    if candidates.method == TOV:
        return [(BEFORE_TOV, None), *((TOV, item.name) for item in config.targets), (method, None)]
    return [(candidates.method, None), (method, None)]


def _shared_piece(stage: str, method: str, target: str | None) -> str:
    """The name of work that cells share: one warmup, the features of a method, what `tov` makes for a target."""
    if target is not None:
        return f"{stage}/{method}/{target}"
    return stage if stage == "warmup" else f"{stage}/{method}"


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
    """Warmup and features are made once for all targets, and counted in full for each, but for those of `tov`, which
    are the target's own; None: not known."""
    seconds = watch.of(_piece("score", cell), _piece("select", cell))
    flops: float | None = 0.0
    trained = Watch(seed_config(config, cell.seed).run.path)
    for method, target in _preparations(folder_config(config, cell.seed, cell.arm), cell):
        if method in BASELINES:
            continue
        seconds += _watch_of(config, _holder(config, cell, method)).of(_shared_piece("features", method, target))
        if _has_candidates_of_its_own(config, cell, method):
            seconds += watch.of(_shared_piece("features", method, target))
        if method not in SEEDLESS:
            seconds += trained.of(_shared_piece("warmup", method, target))
        more = _flops(config, cell, method, target)
        flops = None if flops is None or more is None else flops + more
    return {"seconds": seconds, "flops": flops}


def _flops(config: RunConfig, cell: Cell, method: str, target: str | None) -> float | None:
    """Of what a method takes before it scores; None: not known."""
    if method in SEEDLESS:
        return representation_flops(config, method) if method in REPRESENTATIONS else None
    if target is not None:
        return tov_flops(seed_config(config, cell.seed), target)
    return less_flops(folder_config(config, cell.seed, cell.arm))


def _training_cost(own: RunConfig, cell: Cell, watch: Watch) -> dict[str, float]:
    """Seconds by the clock, or as the model's manifest says them where it was copied from a twin."""
    folder = own.run.model(cell.target, cell.name)
    seconds = max(watch.of(_piece("train", cell)), float(read_record(folder / MANIFEST, ("seconds",)).facts["seconds"]))
    return {"seconds": seconds, "flops": training_flops(own, folder)}
