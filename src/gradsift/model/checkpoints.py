"""LoRA checkpoints of the warmup: the adapter, the Adam moments by parameter name, step and learning rate.

Reads our own folders and those that a plain Hugging Face Trainer (TRL, LLaMA-Factory, axolotl) has saved.
"""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsift.errors import CheckpointError
from gradsift.machine import file_sha256, fingerprint, write_json
from gradsift.model.adapter_files import (
    ADAPTER_CONFIG,
    LORA_WEIGHT,
    adapter_file,
    adapter_meaning,
    lora_shapes,
    read_adapter_config,
    read_tensors,
    require_numbers,
    require_shape,
)
from gradsift.model.facts import OwnFacts, TrainerLog, TrainerStep, checked, read_facts, read_object
from gradsift.model.moments import AdamSettings, Moments
from gradsift.model.optimizers import neutral, read_optimizer

if TYPE_CHECKING:
    from torch import Tensor, nn


CHECKPOINT_JSON = "checkpoint.json"
MOMENTS_FILE = "moments.safetensors"
OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin")


@dataclass(frozen=True)
class Checkpoint:
    """A folder with an adapter, and how much its epoch counts."""

    path: Path
    step: int
    learning_rate: float
    """Mean learning rate of the epoch that ends here: η̄ of METHOD section 2."""
    is_dated: bool = False
    """Of a warmup from before an adapter's config had its place in the meaning of features: theirs is without it."""

    @property
    def name(self) -> str:
        """The name of its feature stores."""
        return self.path.name

    @property
    def adapter_file(self) -> Path:
        """The adapter's weights."""
        return adapter_file(self.path)

    @property
    def moments_file(self) -> Path | None:
        """The file that holds Adam's moments, ours or the Trainer's; None where there is none."""
        names = (MOMENTS_FILE, *OPTIMIZER_FILES)
        return next((self.path / name for name in names if (self.path / name).is_file()), None)

    @property
    def adapter(self) -> dict[str, Any]:
        """What of the adapter's config its gradients depend on; of plain LoRA, else it is refused."""
        return adapter_meaning(read_adapter_config(self.path))

    def fingerprint(self) -> str:
        """Identifies the checkpoint by all that features depend on: adapter, its config, moments, Adam's settings."""
        files = [self.adapter_file] + ([self.moments_file] if self.moments_file else [])
        parts: list[Any] = [content_sha256(path) for path in files]
        if not self.is_dated:
            parts += [self.adapter, self._own_adam()]
        return fingerprint(parts)

    def _own_adam(self) -> dict[str, Any] | None:
        """Adam's step, betas and epsilon where they stand in a file of their own; the Trainer's are in its state."""
        path = self.path / CHECKPOINT_JSON
        if not path.is_file():
            return None
        return read_facts(path, OwnFacts).model_dump(mode="json", exclude={"learning_rate"})


def content_sha256(path: Path) -> str:
    """SHA-256 of a file, computed once a process for a file that hasn't changed since."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _sha256(path: Path, size: int, modified: int) -> str:
    return file_sha256(path)


def load_checkpoint(path: Path, learning_rate: float | None = None) -> Checkpoint:
    """The checkpoint in that folder, its files checked; `learning_rate` overrides what they say.

    Raises CheckpointError where the folder is no LoRA checkpoint or doesn't say its learning rate.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such checkpoint folder")
    if not (path / ADAPTER_CONFIG).is_file():
        raise CheckpointError(f"{path}: no adapter_config.json: gradsift needs LoRA checkpoints in PEFT's format")
    lora_shapes(path, read_adapter_config(path))
    if (path / CHECKPOINT_JSON).is_file():
        facts = read_facts(path / CHECKPOINT_JSON, OwnFacts)
        return Checkpoint(path, facts.step, facts.learning_rate if learning_rate is None else learning_rate)
    state_file = path / "trainer_state.json"
    if not state_file.is_file():
        raise CheckpointError(f"{path}: no trainer_state.json: give a checkpoint-<step> folder of the Trainer")
    state = read_object(state_file)
    step = checked(state_file, state, TrainerStep).global_step
    return Checkpoint(path, step, learning_rate or mean_learning_rate(path, state))


def mean_learning_rate(path: Path, state: Mapping[str, Any]) -> float:
    """Mean of the learning rates logged in the epoch that ends at the checkpoint."""
    log = checked(path / "trainer_state.json", dict(state), TrainerLog)
    start = math.ceil(log.epoch - 1e-6) - 1
    rates = [
        entry.learning_rate
        for entry in log.log_history
        if entry.learning_rate is not None and entry.epoch is not None and start < entry.epoch <= log.epoch + 1e-6
    ]
    if not rates:
        raise CheckpointError(
            f"{path}: trainer_state.json logs no learning rate in the epoch that ends there; "
            "say it in the config: warmup.checkpoints: [{path: …, learning_rate: …}]"
        )
    return sum(rates) / len(rates)


def adapter_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Shapes of the adapter's matrices by the model's parameter names, in no particular order."""
    found = lora_shapes(checkpoint.path, read_adapter_config(checkpoint.path))
    return {LORA_WEIGHT.sub(r".\1.default.weight", name): shape for name, shape in found.items()}


def load_adapter(model: nn.Module, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Copy the adapter's matrices into the model's, checking every name, shape and value.

    Other tensors that were saved with it must be the base's own, as it stands.
    """
    import torch

    path = checkpoint.adapter_file
    saved = {neutral(name): tensor for name, tensor in read_tensors(path).items()}
    parameters = dict(model.named_parameters())
    for name in sorted(saved.keys() - {neutral(name) for name in shapes}):
        _require_the_bases(model, path, name, saved[name])
    for name, shape in shapes.items():
        tensor = saved.get(neutral(name))
        if tensor is None:
            raise CheckpointError(f"{path}: lacks {name}")
        if name not in parameters:
            raise CheckpointError(f"{path}: {name} is not a LoRA matrix of the model")
        require_shape(path, name, tensor.shape, shape)
        require_numbers(path, name, tensor)
        with torch.no_grad():
            parameters[name].copy_(tensor)


def _require_the_bases(model: nn.Module, path: Path, name: str, tensor: Tensor) -> None:
    """Raise where a tensor beside the adapter isn't the base's: PEFT saves a resized embedding, and would load it."""
    try:
        own = model.get_parameter(name)
    except AttributeError as error:
        raise CheckpointError(f"{path}: {name} is not a LoRA matrix of the model") from error
    remedy = f"put the saved {name} into the base, save it, and name it in model.name_or_path"
    if own.shape != tensor.shape:
        raise CheckpointError(
            f"{path}: holds {name} of shape {list(tensor.shape)}, the base's has {list(own.shape)}: it was resized "
            f"before the training; resize_token_embeddings({tensor.shape[0]}), {remedy}"
        )
    coarser = min(own.dtype, tensor.dtype, key=lambda dtype: dtype.itemsize)
    if not tensor.to(coarser).equal(own.detach().cpu().to(coarser)):
        raise CheckpointError(f"{path}: holds {name} with other values than the base's: {remedy}")


def read_moments(
    checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Moments], AdamSettings]:
    """Adam's moments of every LoRA matrix, on the CPU in float32, and its settings.

    Raises CheckpointError where the optimizer isn't Adam, numbers other parameters, or has other shapes.
    """
    path = checkpoint.moments_file
    if path is None:
        raise CheckpointError(
            f"{checkpoint.path}: has no optimizer state (optimizer.pt): save it (save_only_model=False), or set "
            "features.adam=sgd, which needs none"
        )
    if path.name == MOMENTS_FILE:
        return _read_own_moments(checkpoint, path, shapes)
    return read_optimizer(path, shapes)


def _read_own_moments(
    checkpoint: Checkpoint, path: Path, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Moments], AdamSettings]:
    facts = read_facts(checkpoint.path / CHECKPOINT_JSON, OwnFacts)
    tensors = read_tensors(path)
    moments: dict[str, Moments] = {}
    for name, shape in shapes.items():
        keys = (f"{name}.exp_avg", f"{name}.exp_avg_sq")
        if not {*keys} <= tensors.keys():
            raise CheckpointError(f"{path}: lacks the moments of {name}")
        for key in keys:
            require_shape(path, key, tensors[key].shape, shape)
            require_numbers(path, key, tensors[key], negative=key == keys[0])
        moments[name] = Moments(*(tensors[key].float() for key in keys))
    return moments, AdamSettings(facts.step, facts.betas, facts.eps)


def import_checkpoint(saved: Path, destination: Path, shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
    """Write the Trainer's checkpoint `saved` in our format: adapter, moments by name, checkpoint.json last."""
    from safetensors.torch import save_file

    checkpoint = load_checkpoint(saved)
    moments, adam = read_moments(checkpoint, shapes)
    temporary = destination.with_name(f".{destination.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in (ADAPTER_CONFIG, checkpoint.adapter_file.name):
        shutil.copyfile(saved / name, temporary / name)
    tensors = {f"{name}.exp_avg": pair.first_OI.contiguous() for name, pair in moments.items()}
    tensors |= {f"{name}.exp_avg_sq": pair.second_OI.contiguous() for name, pair in moments.items()}
    save_file(tensors, temporary / MOMENTS_FILE)
    facts = {
        "step": adam.step,
        "learning_rate": checkpoint.learning_rate,
        "betas": adam.betas,
        "eps": adam.eps,
    }
    write_json(temporary / CHECKPOINT_JSON, facts)
    shutil.rmtree(destination, ignore_errors=True)
    temporary.replace(destination)
    return load_checkpoint(destination)


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Our own checkpoints in a warmup folder, in the order of their steps."""
    found = [load_checkpoint(path.parent) for path in folder.glob(f"checkpoint-*/{CHECKPOINT_JSON}")]
    return sorted(found, key=lambda checkpoint: checkpoint.step)
