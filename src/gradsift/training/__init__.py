"""Training on encoded rows through the Hugging Face Trainer, the same for the warmup and the final model."""

from __future__ import annotations

from gradsift.training.finetuning import TRAINER_FOLDER, Training, TrainingConfig, finetune

__all__ = [
    "TRAINER_FOLDER",
    "Training",
    "TrainingConfig",
    "finetune",
]
