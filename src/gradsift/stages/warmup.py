"""The warmup stage: LoRA training on a random part of the pool, a checkpoint an epoch; or the user's checkpoints."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gradsift.baselines import EMBEDDING, REPRESENTATIONS, TOV
from gradsift.encoding import Corpus
from gradsift.errors import ConfigError
from gradsift.gradients import probe
from gradsift.machine import MANIFEST, RunFolder, pick_device, write_json
from gradsift.model import (
    Checkpoint,
    ModelConfig,
    add_lora,
    import_checkpoint,
    list_checkpoints,
    load_base_model,
    load_checkpoint,
    model_fingerprint,
)
from gradsift.stages.warmup_files import checkpoint_files, keep_base
from gradsift.training import TRAINER_FOLDER, Training, TrainingConfig, finetune

TAKEN_NAMES = frozenset({*REPRESENTATIONS, EMBEDDING, TOV})
"""Names of stores that are no checkpoint's."""


class SavedCheckpoint(BaseModel):
    """A LoRA checkpoint that the user already has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    learning_rate: float | None = Field(None, gt=0)
    """Its weight in the score; None: the mean of its epoch, from trainer_state.json."""


class WarmupConfig(TrainingConfig):
    """LoRA training on a random part of the pool."""

    fraction: float = Field(0.05, gt=0, le=1)
    checkpoints: list[SavedCheckpoint] | None = None
    """Checkpoints to use in place of a warmup."""

    @model_validator(mode="before")
    @classmethod
    def _paths_are_checkpoints(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("checkpoints"), list):
            listed = [{"path": item} if isinstance(item, str) else item for item in value["checkpoints"]]
            return {**value, "checkpoints": listed}
        return value


def saved_checkpoints(config: WarmupConfig) -> list[Checkpoint]:
    """The user's checkpoints, which must have folder names of their own: their stores are named after them."""
    if not config.checkpoints:
        raise ConfigError("warmup.checkpoints is empty: name at least one, or leave the key out")
    found = [load_checkpoint(_folder(item.path), item.learning_rate) for item in config.checkpoints]
    names = [checkpoint.name for checkpoint in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"warmup.checkpoints: two folders are named {name}; rename one")
        if name in TAKEN_NAMES or name.startswith(".") or not name.isprintable():
            raise ConfigError(f"warmup.checkpoints: {name!r} can't name a feature store; rename the folder")
    return found


def _folder(path: str) -> Path:
    """The folder as the user names it, whole: `.` and `..` have no names."""
    try:
        return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 - a link keeps its own name
    except (RuntimeError, ValueError) as error:  # ~nobody/x, a zero byte
        raise ConfigError(f"warmup.checkpoints: {path!r} is no path: {error}") from error


def run_warmup(run: RunFolder, model_config: ModelConfig, config: WarmupConfig, seed: int) -> list[Checkpoint]:
    """Train on a random part of the pool, from the last finished epoch where there is one; its checkpoints."""
    from transformers import set_seed

    corpus = Corpus(run.pool)
    rows = corpus.rows_at(warmup_rows(corpus.num_rows, config.fraction, seed))
    set_seed(seed)
    model = add_lora(load_base_model(model_config, pick_device()), config.lora)
    probe(model, rows)
    trainer = run.warmup / TRAINER_FOLDER
    keep_base(run, trainer, model_config)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters() if weight.requires_grad}

    def keep(saved: Path) -> None:
        import_checkpoint(saved, run.warmup / saved.name, shapes)

    finetune(model, Training("warmup", rows, config, seed, trainer, keep))
    checkpoints = list_checkpoints(run.warmup)
    facts = {
        "settings": config.model_dump(mode="json"),
        "seed": seed,
        "base_model": model_fingerprint(model_config),
        "checkpoints": [checkpoint.name for checkpoint in checkpoints],
        "files": {checkpoint.name: checkpoint_files(checkpoint) for checkpoint in checkpoints},
        "rows": [[row.source, row.id] for row in rows],
    }
    write_json(run.warmup / MANIFEST, facts)
    shutil.rmtree(trainer, ignore_errors=True)
    return checkpoints


def warmup_rows(num_rows: int, fraction: float, seed: int) -> list[int]:
    """Positions of a random `fraction` of the rows, at least one, in the order drawn."""
    count = max(1, int(num_rows * fraction + 1e-9))
    return [int(position) for position in np.random.default_rng(seed).permutation(num_rows)[:count]]
