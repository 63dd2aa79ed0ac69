"""Training on encoded rows, the same for the warmup and the final model: its settings, and `finetune`."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gradsift.encoding import EncodedRow
from gradsift.errors import ConfigError, UserError
from gradsift.machine import Progress
from gradsift.model import LoraConfig, quiet_peft

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

    _require_rates(training)
    if training.config.gradient_checkpointing:
        _forget_activations(model)
    last = _last_complete(training.folder)

    def keep(saved: Path) -> None:
        _require_numbers(model, training.section)
        training.on_save(saved)
        (saved / COMPLETE_MARK).touch()

    with Progress(training.section, training.num_steps, "steps") as progress:
        if last is not None:
            logger.info("%s: going on from %s", training.section, last.name)
            progress.resume(_step(last))
        with _refused_settings(training.section):
            trainer = build_trainer(model, training.rows, _arguments(training), Keeper(keep, progress))
        with quiet_peft():
            trainer.train(resume_from_checkpoint=str(last) if last else None)
    _require_numbers(model, training.section)
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@contextlib.contextmanager
def _refused_settings(section: str) -> Iterator[None]:
    """One line of what the Trainer says of settings: an unknown scheduler, a tracker that is not installed."""
    try:
        yield
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{section}: the Trainer refuses its settings: {reason}") from error


def _require_rates(training: Training) -> None:
    rates = learning_rates(training)
    if rates is not None and not any(rate > 0 for rate in rates):
        raise ConfigError(
            f"{training.section}.lr_scheduler_type: {training.config.lr_scheduler_type} gives none of the "
            f"{training.num_steps} steps a learning rate above 0: lower warmup_ratio, or train on more rows"
        )


def _require_numbers(model: nn.Module, section: str) -> None:
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    if not all(bool(parameter.isfinite().all()) for parameter in trained):
        raise UserError(f"{section} diverged (weights that are not numbers): lower {section}.learning_rate")


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
        "warmup_steps": warmup_steps(training),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "seed": training.seed,
        "data_seed": training.seed,
        "report_to": list(training.report_to) or "none",
        "bf16": training.bf16,
        **(by_steps if training.save_steps else {"save_strategy": "epoch"}),
    }


def warmup_steps(training: Training) -> int:
    """Steps over which the learning rate rises from 0: the ratio of all, rounded up; none where there is one step.

    The first of them is taken at rate 0, so a training of a single step would learn nothing.
    """
    num_steps = training.num_steps
    return math.ceil(num_steps * training.config.warmup_ratio) if num_steps > 1 else 0


def learning_rates(training: Training) -> list[float] | None:
    """The rate of every step, from transformers' own schedule; None where it depends on an evaluation.

    Raises ConfigError where the schedule is unknown, or needs settings that the config can't give.
    """
    import torch
    from transformers import get_scheduler

    config, num_steps = training.config, training.num_steps
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate)  # never steps
    with _refused_settings(training.section):
        schedule = get_scheduler(config.lr_scheduler_type, optimizer, warmup_steps(training), num_steps)
    if not hasattr(schedule, "lr_lambdas"):
        return None
    (factor,) = schedule.lr_lambdas
    return [config.learning_rate * factor(step) for step in range(num_steps)]


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
