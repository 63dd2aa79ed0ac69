"""The Hugging Face Trainer on our encoded rows: every example counts the same, every checkpoint is kept in our form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from gradsift.encoding import Batch, EncodedRow, groups_of_like_length, pad_rows
from gradsift.machine import Progress
from gradsift.model import example_losses


class ExampleMeanTrainer(Trainer):  # type: ignore[misc]
    """The Trainer with the mean over examples as its loss, not the mean over all tokens of the batch."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.model_accepts_loss_kwargs = False  # so that the losses of micro-batches are averaged

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        """Mean of the examples' losses.

        Rows of like length go through the model together: a step's rows are drawn at random, and padding all of
        them to the longest would cost more than the rows themselves.
        """
        batch = Batch(inputs["input_ids"], inputs["attention_mask"], inputs["labels"])
        lengths = batch.attention_mask_BT.sum(dim=1).tolist()
        parts = [batch.part(group, lengths[group[0]]) for group in groups_of_like_length(lengths)]
        return torch.cat([example_losses(model, part) for part in parts]).mean()


class Keeper(TrainerCallback):  # type: ignore[misc]
    """Hands every saved checkpoint on, and counts steps."""

    def __init__(self, keep: Callable[[Path], None], progress: Progress) -> None:
        self._keep, self._progress = keep, progress

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The folder is whole now."""
        self._keep(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An optimizer step was taken."""
        self._progress.advance(1)


def build_trainer(model: nn.Module, rows: Sequence[EncodedRow], arguments: dict[str, Any], keeper: Keeper) -> Trainer:
    """A Trainer of one device in one process, silent but for our own progress."""
    settings = TrainingArguments(
        **arguments,
        optim="adamw_torch",
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
    )
    settings._n_gpu = min(settings.n_gpu, 1)  # no DataParallel
    trainer = ExampleMeanTrainer(
        model=model, args=settings, train_dataset=list(rows), data_collator=_collated, callbacks=[keeper]
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _collated(rows: list[EncodedRow]) -> dict[str, Tensor]:
    batch = pad_rows(rows)
    return {
        "input_ids": batch.input_ids_BT,
        "attention_mask": batch.attention_mask_BT,
        "labels": batch.labels_BT,
    }
