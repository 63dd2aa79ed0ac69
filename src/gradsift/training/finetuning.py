"""Training on encoded rows, the same for the warmup and the final model: its settings, and `finetune`."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gradsift.encoding import EncodedRow
from gradsift.errors import ConfigError, UserError
from gradsift.machine import Progress
from gradsift.model import LoraConfig

if TYPE_CHECKING:
    from torch import nn


logger = logging.getLogger(__name__)

TRAINER_FOLDER = ".trainer"
COMPLETE_MARK = "complete"
MICRO_BATCH_TOKENS = 8192


class TrainingConfig(BaseModel):
    """How a model is trained; the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    gradient_checkpointing: bool = False
    """Forget activations and compute them again in the backward pass: less memory, about a third more time."""
    lora: LoraConfig = LoraConfig()


@dataclass(frozen=True)
class Training:
    """One training: these rows, in these settings."""

    section: str
    """The section of the config that it follows, for progress and errors."""
    rows: Sequence[EncodedRow]
    config: TrainingConfig
    seed: int
    folder: Path
    """Where the Trainer keeps what it needs to go on after a stop."""
    on_save: Callable[[Path], None] = lambda saved: None
    """Called with each checkpoint folder of the Trainer when it is whole."""
    save_steps: int | None = None
    """Steps between checkpoints; None: an epoch."""
    report_to: Sequence[str] = ()
    """Trackers of the Hugging Face Trainer."""
    bf16: bool = False
    """Compute in bfloat16 on float32 weights (full fine-tuning)."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps in all."""
        return math.ceil(len(self.rows) / self.config.batch_size) * self.config.epochs


def finetune(model: nn.Module, training: Training) -> list[dict[str, float]]:
    """Train the model's trainable parameters in place, from the last whole checkpoint where there is one.

    Gives back the Trainer's log, an entry a step (`step`, `epoch`, `loss` in nats, `learning_rate`, `grad_norm`). The
    loss is the mean over examples of the mean over an example's tokens, as in the authors' runs (one example a
    device), so that a step is the mean of the gradients whose influence is measured. Raises UserError where the
    weights are no numbers in the end.
    """
    from gradsift.training.trainer import Keeper, build_trainer

    if training.config.gradient_checkpointing:
        _forget_activations(model)
    last = _last_complete(training.folder)

    def keep(saved: Path) -> None:
        training.on_save(saved)
        (saved / COMPLETE_MARK).touch()

    with Progress(training.section, training.num_steps, "steps") as progress:
        if last is not None:
            logger.info("%s: going on from %s", training.section, last.name)
            progress.resume(_step(last))
        try:
            trainer = build_trainer(model, training.rows, _arguments(training), Keeper(keep, progress))
        except (ValueError, ImportError, RuntimeError) as error:  # an unknown scheduler, a tracker not installed
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"{training.section}: the Trainer refuses its settings: {reason}") from error
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    if not all(bool(parameter.isfinite().all()) for parameter in trained):
        raise UserError(
            f"{training.section} diverged (weights that are not numbers): lower {training.section}.learning_rate"
        )
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def _forget_activations(model: nn.Module) -> None:
    """Activation checkpointing, by the name that it goes by in this version of transformers."""
    enable: Any = getattr(model, "activation_checkpointing_enable", None)
    enable = enable or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _arguments(training: Training) -> dict[str, Any]:
    config = training.config
    micro = micro_batch_size(training)
    by_steps = {"save_strategy": "steps", "save_steps": training.save_steps}
    return {
        "output_dir": str(training.folder),
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": config.batch_size // micro,
        "lr_scheduler_type": config.lr_scheduler_type,
        "warmup_steps": config.warmup_ratio,  # below 1: a fraction of all steps
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "seed": training.seed,
        "data_seed": training.seed,
        "report_to": list(training.report_to) or "none",
        "bf16": training.bf16,
        **(by_steps if training.save_steps else {"save_strategy": "epoch"}),
    }


def micro_batch_size(training: Training) -> int:
    """Examples at once: as asked for, else the largest divisor of the batch that keeps to a budget of tokens."""
    config = training.config
    if config.micro_batch_size != "auto":
        if config.batch_size % config.micro_batch_size:
            raise ConfigError(
                f"{training.section}.micro_batch_size {config.micro_batch_size} doesn't divide batch_size "
                f"{config.batch_size}"
            )
        return config.micro_batch_size
    most = max(1, MICRO_BATCH_TOKENS // max(row.num_tokens for row in training.rows))
    return max(size for size in range(1, min(most, config.batch_size) + 1) if config.batch_size % size == 0)


def _last_complete(folder: Path) -> Path | None:
    """The Trainer's last checkpoint that was saved whole; what was being saved when the process died is deleted."""
    for saved in folder.glob("checkpoint-*"):
        if not (saved / COMPLETE_MARK).is_file():
            shutil.rmtree(saved)
    return max(folder.glob("checkpoint-*"), key=_step, default=None)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
