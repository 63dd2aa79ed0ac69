"""The warmup stage: LoRA training on a random part of the pool, a checkpoint an epoch; or the user's checkpoints."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gradsift.artifact import MANIFEST, write_json
from gradsift.checkpoints import Checkpoint, import_checkpoint, list_checkpoints, load_checkpoint
from gradsift.corpus import Corpus
from gradsift.encoding import EncodedRow
from gradsift.errors import ConfigError, UserError
from gradsift.modeling import LoraConfig, ModelConfig, add_lora, load_base_model
from gradsift.runfolder import RunFolder
from gradsift.runtime import Progress, pick_device

logger = logging.getLogger(__name__)

TRAINER_FOLDER = ".trainer"
COMPLETE_MARK = "complete"
MICRO_BATCH_TOKENS = 8192


class SavedCheckpoint(BaseModel):
    """A LoRA checkpoint that the user already has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    learning_rate: float | None = Field(None, gt=0)
    """Its weight in the score; None: the mean of its epoch, from trainer_state.json."""


class WarmupConfig(BaseModel):
    """LoRA training on a random part of the pool; the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fraction: float = Field(0.05, gt=0, le=1)
    epochs: int = Field(4, ge=1)
    learning_rate: float = Field(2.0e-5, gt=0)
    batch_size: int = Field(128, ge=1)
    """Examples a step, whatever the number of devices."""
    micro_batch_size: int | Literal["auto"] = "auto"
    """Examples that go through the model at once; changes memory and speed, not the step."""
    lr_scheduler_type: str = "linear"
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    lora: LoraConfig = LoraConfig()
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
    found = [load_checkpoint(Path(item.path).expanduser(), item.learning_rate) for item in config.checkpoints]
    names = [checkpoint.name for checkpoint in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"warmup.checkpoints: two folders are named {name}; rename one")
    return found


def finished_warmup(run: RunFolder) -> list[Checkpoint]:
    """The checkpoints of a warmup that is done; an empty list of one that isn't."""
    return list_checkpoints(run.warmup) if (run.warmup / MANIFEST).is_file() else []


def warmup(run: RunFolder, model_config: ModelConfig, config: WarmupConfig, seed: int) -> list[Checkpoint]:
    """Train on a random part of the pool, from the last finished epoch where there is one; its checkpoints."""
    corpus = Corpus(run.pool)
    chosen = warmup_rows(corpus.num_rows, config.fraction, seed)
    rows = _read_rows(corpus, chosen)
    checkpoints = train_lora(rows, model_config, config, run.warmup, seed)
    facts = {
        "settings": config.model_dump(mode="json"),
        "seed": seed,
        "checkpoints": [checkpoint.name for checkpoint in checkpoints],
        "rows": [[row.source, row.id] for row in rows],
    }
    write_json(run.warmup / MANIFEST, facts)
    shutil.rmtree(run.warmup / TRAINER_FOLDER, ignore_errors=True)
    return checkpoints


def warmup_rows(num_rows: int, fraction: float, seed: int) -> list[int]:
    """Positions of a random `fraction` of the rows, at least one, in the order drawn."""
    count = max(1, int(num_rows * fraction + 1e-9))
    return [int(position) for position in np.random.default_rng(seed).permutation(num_rows)[:count]]


def _read_rows(corpus: Corpus, positions: Sequence[int]) -> list[EncodedRow]:
    wanted = set(positions)
    found: dict[int, EncodedRow] = {}
    for start in range(0, corpus.num_rows, 1024):
        stop = min(start + 1024, corpus.num_rows)
        hits = [position for position in range(start, stop) if position in wanted]
        if hits:
            block = corpus.rows(start, stop)
            found |= {position: block[position - start] for position in hits}
    return [found[position] for position in positions]


def train_lora(
    rows: Sequence[EncodedRow], model_config: ModelConfig, config: WarmupConfig, folder: Path, seed: int
) -> list[Checkpoint]:
    """Train an adapter on the rows; a checkpoint an epoch in `folder`, in the order of their steps.

    The loss is the mean over examples of the mean over an example's tokens, as in the authors' runs (one example a
    device), so that a step is the mean of the gradients whose influence is measured.
    """
    from transformers import set_seed

    from gradsift.stages.trainer import Keeper, build_trainer

    set_seed(seed)
    model = add_lora(load_base_model(model_config, pick_device()), config.lora)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    shapes = {name: tuple(parameter.shape) for name, parameter in trained.items()}
    last = _last_complete(folder / TRAINER_FOLDER)

    def keep(saved: Path) -> None:
        import_checkpoint(saved, folder / saved.name, shapes)
        (saved / COMPLETE_MARK).touch()

    with Progress("warmup", _num_steps(len(rows), config), "steps") as progress:
        if last is not None:
            logger.info("warmup: going on from %s", last.name)
            progress.advance(_step(last))
        arguments = _training_arguments(rows, config, folder / TRAINER_FOLDER, seed)
        trainer = build_trainer(model, rows, arguments, Keeper(keep, progress))
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    if not all(bool(parameter.isfinite().all()) for parameter in trained.values()):
        raise UserError("the warmup diverged (weights that are not numbers): lower warmup.learning_rate")
    return list_checkpoints(folder)


def _training_arguments(rows: Sequence[EncodedRow], config: WarmupConfig, folder: Path, seed: int) -> dict[str, Any]:
    micro = micro_batch_size(config, max(row.num_tokens for row in rows))
    return {
        "output_dir": str(folder),
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": config.batch_size // micro,
        "lr_scheduler_type": config.lr_scheduler_type,
        "warmup_steps": config.warmup_ratio,  # below 1: a fraction of all steps
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "seed": seed,
        "data_seed": seed,
    }


def _last_complete(folder: Path) -> Path | None:
    """The Trainer's last checkpoint that was saved whole; what was being saved when the process died is deleted."""
    for saved in folder.glob("checkpoint-*"):
        if not (saved / COMPLETE_MARK).is_file():
            shutil.rmtree(saved)
    return max(folder.glob("checkpoint-*"), key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _num_steps(num_rows: int, config: WarmupConfig) -> int:
    return -(-num_rows // config.batch_size) * config.epochs


def micro_batch_size(config: WarmupConfig, longest: int) -> int:
    """Examples at once: as asked for, else the largest divisor of the batch that keeps to a budget of tokens."""
    if config.micro_batch_size != "auto":
        if config.batch_size % config.micro_batch_size:
            raise ConfigError(
                f"warmup.micro_batch_size {config.micro_batch_size} doesn't divide batch_size {config.batch_size}"
            )
        return config.micro_batch_size
    most = max(1, MICRO_BATCH_TOKENS // longest)
    return max(size for size in range(1, min(most, config.batch_size) + 1) if config.batch_size % size == 0)
