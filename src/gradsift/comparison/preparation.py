"""What the cells of a comparison share: data, trainings and features, each made once and linked from where it is held.

RUN holds the data and the features that no seed changes; a seed's folder its trainings and features; an arm's own
folder the features that are made otherwise than the run's, with links to the rest.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from gradsift.baselines import BASELINES, EMBEDDING, REPRESENTATIONS, TOV
from gradsift.comparison.costs import Watch, less_flops, representation_flops, tov_flops
from gradsift.comparison.plan import Cell, comparison_folder, folder_config, seed_config
from gradsift.config import RunConfig, keep_config
from gradsift.errors import RunFolderError
from gradsift.machine import RunFolder, locked
from gradsift.pipeline import features_stage, warmup_stage

SHARED_FOLDERS = ("pool", "targets")
SEEDLESS = (*REPRESENTATIONS, EMBEDDING)
"""Methods whose features no seed changes."""
BEFORE_TOV = "loss"
"""The method whose features are the losses that `tov` starts from."""


def share_data(config: RunConfig, cell: Cell) -> None:
    """Begin the folders of the cell's seed and arm: their config, and links to the encoded pool and targets."""
    for folder in (seed_config(config, cell.seed), folder_config(config, cell.seed, cell.arm)):
        _link_folders(folder.run, config.run, SHARED_FOLDERS)
        keep_config(folder)


def prepare(config: RunConfig, cell: Cell) -> None:
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


def _shared_piece(stage: str, method: str, target: str | None) -> str:
    """The name of work that cells share: one warmup, the features of a method, what `tov` makes for a target."""
    if target is not None:
        return f"{stage}/{method}/{target}"
    return stage if stage == "warmup" else f"{stage}/{method}"


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


def prepared_cost(config: RunConfig, cell: Cell) -> tuple[float, float | None]:
    """Seconds and operations of the cell's `prepare`; None: not known.

    Warmup and features are made once for all targets, and counted in full for each, but for those of `tov`, which are
    the target's own.
    """
    seconds, flops = 0.0, 0.0
    is_known = True
    seeded, own = seed_config(config, cell.seed), folder_config(config, cell.seed, cell.arm)
    for method, target in _preparations(own, cell):
        if method in BASELINES:
            continue
        features = _shared_piece("features", method, target)
        seconds += _watch_of(config, _holder(config, cell, method)).of(features)
        if _has_candidates_of_its_own(config, cell, method):
            seconds += Watch(own.run.path).of(features)
        if method not in SEEDLESS:
            seconds += Watch(seeded.run.path).of(_shared_piece("warmup", method, target))
        more = _flops(config, cell, method, target)
        is_known &= more is not None
        flops += more or 0.0
    return seconds, flops if is_known else None


def _flops(config: RunConfig, cell: Cell, method: str, target: str | None) -> float | None:
    """Of what a method takes before it scores; None: not known."""
    if method in SEEDLESS:
        return representation_flops(config, method) if method in REPRESENTATIONS else None
    if target is not None:
        return tov_flops(seed_config(config, cell.seed), target)
    return less_flops(folder_config(config, cell.seed, cell.arm))
