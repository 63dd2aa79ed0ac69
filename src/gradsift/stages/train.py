"""The train stage: a model trained on a selection, or on any file, from the base; in PEFT's or transformers' format."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, field_validator

from gradsift.data import BadRow, Example, SourceConfig, read_rows, source_fingerprint
from gradsift.encoding import EncodedRow, Encoder, EncodingConfig, SetAside
from gradsift.errors import ConfigError, DataError, RunFolderError
from gradsift.machine import (
    MANIFEST,
    Record,
    RunFolder,
    first_difference,
    pick_device,
    pick_dtype,
    read_record,
    write_record,
)
from gradsift.model import ModelConfig, add_lora, load_base_model, load_encoder, model_fingerprint, quiet_peft
from gradsift.stages.encode import as_set_aside
from gradsift.stages.select import read_selection, selection_examples
from gradsift.training import Training, TrainingConfig, finetune

if TYPE_CHECKING:
    from torch import nn


logger = logging.getLogger(__name__)

SETTINGS_FILE = "training.json"
DECISIVE = ("train", "model", "encoding", "data", "seed")
"""Fields of a trained model's manifest that decide its weights."""
NEWER = ("meaning",)
"""Likewise, but manifests made before they were kept lack them."""
WEIGHTS = ("adapter_model.safetensors", "model*.safetensors", "pytorch_model*.bin")
FREE_SETTINGS = {"micro_batch_size", "gradient_checkpointing", "save_steps", "report_to"}
"""Settings that don't change what is learned: a training may go on with others."""


class TrainConfig(TrainingConfig):
    """The final training; what the config leaves out of TrainingConfig's keys is the warmup's."""

    model: ModelConfig | None = None
    """The model to train; None: the one that selected. Another one is LESS-T: its own tokenizer, template, LoRA."""
    method: Literal["lora", "full"] = "lora"
    """An adapter, or every weight of the model."""
    encoding: EncodingConfig | None = None
    """None: the run's, with this model's tokenizer."""
    data: list[SourceConfig] | None = None
    """Files to train on in place of the selection."""
    save_steps: int | None = Field(None, ge=1)
    """Optimizer steps between checkpoints to go on from after a stop; None: an epoch."""
    report_to: list[str] = Field([])
    """Trackers of the Hugging Face Trainer: wandb, tensorboard, mlflow, …"""

    @field_validator("model", mode="before")
    @classmethod
    def _name_is_a_model(cls, value: Any) -> Any:
        return {"name_or_path": value} if isinstance(value, str) else value

    @field_validator("report_to", "data", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | Mapping) else value


@dataclass(frozen=True)
class TrainStage:
    """Trains one model a target; a finished one is not trained again."""

    run: RunFolder
    model: ModelConfig
    """The model that is trained."""
    encoding: EncodingConfig
    config: TrainConfig
    pool: Sequence[SourceConfig]
    seed: int

    def train(self, target: str, selection: str) -> None:
        """Train on the target's selection of that name, from the last checkpoint where there is one."""
        folder = self.run.model(target, selection)
        encoder = load_encoder(self.model, self.encoding)
        settings = {**self._settings(target, selection), "meaning": encoder.meaning()}
        if is_trained(folder, settings):
            logger.info("train %s: %s was trained before", target, selection)
            return
        twin = self._twin(settings)
        if twin is not None and not folder.exists():
            logger.info("train %s: the same as %s, which is copied", target, twin)
            _copy_whole(twin, folder)
            return
        rows, set_aside = self._rows(encoder, target, selection)
        with vouched_training(folder, settings) as facts:
            model = self._fresh_model()
            log = finetune(model, self._training(rows, folder))
            self._save(model, encoder, folder)
            facts |= {**training_facts(rows, log, self.config.epochs), "set_aside": set_aside}

    def _twin(self, settings: Mapping[str, Any]) -> Path | None:
        """A model trained alike, for another target: the full pool and a random part are the same for all of them."""
        manifests = sorted((self.run.path / "model").glob(f"*/[!.]*/{MANIFEST}"))
        return next((path.parent for path in manifests if _is_whole_and_described_by(path, settings)), None)

    def _settings(self, target: str, selection: str) -> dict[str, Any]:
        """What decides the trained model."""
        data = self.config.data
        if data is None:
            trained_on: Any = read_selection(self.run, target, selection)["sha256"]
        else:
            trained_on = {str(source.name): source_fingerprint(source) for source in data}
        return {
            **training_settings(self.config, self.model, self.seed),
            "encoding": self.encoding.model_dump(mode="json"),
            "data": trained_on,
        }

    def _rows(self, encoder: Encoder, target: str, selection: str) -> tuple[list[EncodedRow], dict[str, int]]:
        """The rows to train on, and how many were set aside and why. Raises DataError where none is left."""
        given = self._given(target, selection)
        results = [
            *encoder.encode([row for row in given if isinstance(row, Example)]),
            *(as_set_aside(row) for row in given if isinstance(row, BadRow)),
        ]
        rows = [result for result in results if isinstance(result, EncodedRow)]
        reasons = Counter(result.reason for result in results if isinstance(result, SetAside))
        listed = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3))
        if not rows:
            raise DataError(f"train {target}: no row can be trained on: {listed}")
        if reasons:
            logger.warning("train %s: %d of %d rows set aside: %s", target, reasons.total(), len(results), listed)
        return rows, dict(reasons)

    def _given(self, target: str, selection: str) -> Sequence[Example | BadRow]:
        if self.config.data is None:
            return selection_examples(self.run, self.pool, target, selection)
        return [row for source in self.config.data for row in read_rows(source, self.seed)]

    def _fresh_model(self) -> nn.Module:
        """The base, with a fresh adapter or with every weight in float32; random numbers follow the seed."""
        from transformers import set_seed

        set_seed(self.seed)
        if self.config.method == "lora":
            return add_lora(load_base_model(self.model, pick_device()), self.config.lora)
        if self.model.quantization:
            raise ConfigError(
                f"train.method: a model quantised to {self.model.quantization} can't be trained in full: "
                "use lora, or set the model's quantization to null"
            )
        return load_base_model(self.model.model_copy(update={"dtype": "float32"}), pick_device())

    def _training(self, rows: Sequence[EncodedRow], folder: Path) -> Training:
        return Training(
            "train",
            rows,
            self.config,
            self.seed,
            folder,
            save_steps=self.config.save_steps,
            report_to=self.config.report_to,
            bf16=self.config.method == "full" and str(pick_dtype(self.model.dtype)) == "torch.bfloat16",
        )

    def _save(self, model: nn.Module, encoder: Encoder, folder: Path) -> None:
        """The adapter or the whole model, and a tokenizer that knows the template it was trained with."""
        if self.config.method == "full":
            model.to(pick_dtype(self.model.dtype))
        with quiet_peft():
            model.save_pretrained(folder)  # type: ignore[operator]
        encoder.save_tokenizer(folder)


def training_settings(config: TrainConfig, model: ModelConfig, seed: int) -> dict[str, Any]:
    """What decides a trained model besides its rows."""
    return {
        "train": config.model_dump(mode="json", exclude={*FREE_SETTINGS, "model", "encoding", "data"}),
        "model": {**model.model_dump(mode="json"), "fingerprint": model_fingerprint(model)},
        "seed": seed,
    }


def training_facts(rows: Sequence[EncodedRow], log: Sequence[Mapping[str, float]], epochs: int) -> dict[str, Any]:
    """What is to be known of a training that is done."""
    return {
        "num_rows": len(rows),
        "num_tokens": sum(row.num_tokens for row in rows),
        "loss": _last_epoch_loss(log, epochs),
        "log": log,
    }


@contextlib.contextmanager
def vouched_training(folder: Path, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Facts to fill while a model is trained and saved in `folder`.

    What it is trained with is said first, so that nothing goes on from the checkpoints of another training; the
    manifest, which vouches for the model's files, comes last.
    """
    if not (folder / SETTINGS_FILE).is_file():
        _remove_checkpoints(folder)  # nothing says what they were trained with
        write_record(folder / SETTINGS_FILE, settings)
    start = time.monotonic()
    facts: dict[str, Any] = {}
    yield facts
    _remove_checkpoints(folder)
    seconds = round(time.monotonic() - start, 1)
    write_record(folder / MANIFEST, {**settings, **facts, "seconds": seconds}, _saved_files(folder))
    (folder / SETTINGS_FILE).unlink()


def is_trained(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the model is there; raises RunFolderError where it, or a part of it, was trained in other settings, or
    isn't as it was written."""
    described = next((folder / name for name in (MANIFEST, SETTINGS_FILE) if (folder / name).is_file()), None)
    if described is None:
        return False
    record = read_record(described, DECISIVE)
    before = _with_newer_keys(record.facts)
    for key, now in _with_newer_keys(settings).items():
        difference = first_difference(before.get(key, now if key in NEWER else None), now, key)
        if difference:
            what = "another selection" if key == "data" and isinstance(now, str) else f"other settings: {difference}"
            raise RunFolderError(
                f"{folder} was trained with {what}; delete it to train again, set it back, or use another name "
                "(select.name, or an arm's)"
            )
    if described.name != MANIFEST:
        return False
    require_whole(record)
    return True


def require_whole(record: Record) -> None:
    """Raise RunFolderError where a file of a finished model isn't as it was written, or its weights are gone."""
    folder = record.path.parent
    changed = record.changed_file()
    if changed is not None:
        raise RunFolderError(f"{changed}: isn't what was trained: delete {folder} to train again, or put it back")
    if not any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        raise RunFolderError(f"{folder}: has no weights: delete it to train again")


def _is_whole_and_described_by(path: Path, settings: Mapping[str, Any]) -> bool:
    record = read_record(path, DECISIVE)
    before = _with_newer_keys(record.facts)
    described = all(before.get(key) == value for key, value in settings.items())
    return described and record.changed_file() is None


def _with_newer_keys(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a trained model with the defaults of config keys that are newer than it."""
    sections: dict[str, type[BaseModel]] = {"train": TrainConfig, "model": ModelConfig, "encoding": EncodingConfig}
    defaults = {name: _defaults(kind) for name, kind in sections.items()}
    return {**facts, **{name: {**values, **facts[name]} for name, values in defaults.items()}}


def _defaults(kind: type[BaseModel]) -> dict[str, Any]:
    given = {"model", "encoding", "data", *FREE_SETTINGS}
    return {
        name: field.default
        for name, field in kind.model_fields.items()
        if not field.is_required() and name not in given
    }


def _saved_files(folder: Path) -> list[Path]:
    """The model's and tokenizer's files; a model card is the user's to change."""
    saved = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in saved if path.name not in (MANIFEST, SETTINGS_FILE) and path.suffix != ".md")


def _remove_checkpoints(folder: Path) -> None:
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)


def _copy_whole(folder: Path, destination: Path) -> None:
    unfinished = destination.with_name(f".{destination.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(folder, unfinished)
    unfinished.rename(destination)


def trained_settings(run: RunFolder, target: str, selection: str) -> dict[str, Any]:
    """What decided the trained model, and the checksums of its files. Raises DataError where there is none, and
    RunFolderError where it isn't as it was written."""
    path = run.model(target, selection) / MANIFEST
    if not path.is_file():
        raise DataError(f"there is no model for target {target} yet: run `gradsift train` first", path.parent)
    record = read_record(path, DECISIVE)
    require_whole(record)
    settings = {key: record.facts[key] for key in (*DECISIVE, *NEWER) if key in record.facts}
    return {**settings, "files": record.files} if record.files else settings


def _last_epoch_loss(log: Sequence[Mapping[str, float]], epochs: int) -> float:
    """Mean loss of the last epoch's steps, in nats."""
    losses = [entry["loss"] for entry in log if entry["epoch"] > epochs - 1 + 1e-6]
    return sum(losses) / len(losses)
