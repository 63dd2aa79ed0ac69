"""LoRA checkpoints of the warmup: the adapter, the Adam moments by parameter name, step and learning rate.

Reads our own folders and those that a plain Hugging Face Trainer (TRL, LLaMA-Factory, axolotl) has saved, whose
`optimizer.pt` numbers its parameters: they are mapped through the parameter groups and every shape is checked.
"""

from __future__ import annotations

import math
import pickle
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsift.errors import CheckpointError
from gradsift.machine import file_sha256, fingerprint, read_json, write_json
from gradsift.model.moments import AdamSettings, Moments

if TYPE_CHECKING:
    from torch import Tensor, nn


CHECKPOINT_JSON = "checkpoint.json"
MOMENTS_FILE = "moments.safetensors"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin")
NO_DECAY_PATTERN = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
"""Names that the Hugging Face Trainer puts in its second parameter group (Trainer.get_decay_parameter_names)."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder with an adapter, and how much its epoch counts."""

    path: Path
    step: int
    learning_rate: float
    """Mean learning rate of the epoch that ends here: η̄ of METHOD section 2."""

    @property
    def name(self) -> str:
        """The name of its feature stores."""
        return self.path.name

    @property
    def adapter_file(self) -> Path:
        """The adapter's weights."""
        return _first_file(self.path, ADAPTER_FILES, "an adapter")

    @property
    def moments_file(self) -> Path | None:
        """The file that holds Adam's moments, ours or the Trainer's; None where there is none."""
        names = (MOMENTS_FILE, *OPTIMIZER_FILES)
        return next((self.path / name for name in names if (self.path / name).is_file()), None)

    def fingerprint(self) -> str:
        """Identifies adapter and moments by their content."""
        files = [self.adapter_file] + ([self.moments_file] if self.moments_file else [])
        return fingerprint([file_sha256(path) for path in files])


def load_checkpoint(path: Path, learning_rate: float | None = None) -> Checkpoint:
    """The checkpoint in that folder; `learning_rate` overrides what its files say.

    Raises CheckpointError where the folder is no LoRA checkpoint or doesn't say its learning rate.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such checkpoint folder")
    if not (path / "adapter_config.json").is_file():
        raise CheckpointError(f"{path}: no adapter_config.json: gradsift needs LoRA checkpoints in PEFT's format")
    if (path / CHECKPOINT_JSON).is_file():
        facts = read_json(path / CHECKPOINT_JSON)
        return Checkpoint(path, facts["step"], learning_rate or facts["learning_rate"])
    state_file = path / "trainer_state.json"
    if not state_file.is_file():
        raise CheckpointError(f"{path}: no trainer_state.json: give a checkpoint-<step> folder of the Trainer")
    state = read_json(state_file)
    return Checkpoint(path, int(state["global_step"]), learning_rate or mean_learning_rate(path, state))


def mean_learning_rate(path: Path, state: Mapping[str, Any]) -> float:
    """Mean of the learning rates logged in the epoch that ends at the checkpoint."""
    end = float(state["epoch"])
    start = math.ceil(end - 1e-6) - 1
    rates = [
        float(entry["learning_rate"])
        for entry in state["log_history"]
        if "learning_rate" in entry and start < float(entry["epoch"]) <= end + 1e-6
    ]
    if not rates:
        raise CheckpointError(
            f"{path}: trainer_state.json logs no learning rate in the epoch that ends there; "
            "say it in the config: warmup.checkpoints: [{path: …, learning_rate: …}]"
        )
    return sum(rates) / len(rates)


def adapter_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Shapes of the adapter's matrices by the model's parameter names, in no particular order."""
    from safetensors import SafetensorError, safe_open

    path = checkpoint.adapter_file
    if path.suffix != ".safetensors":
        shapes = {name: tuple(tensor.shape) for name, tensor in _read_tensors(path).items()}
    else:
        try:
            with safe_open(path, framework="pt") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(f"{path}: is damaged: {error}") from error
    return {re.sub(r"\.(lora_[AB])\.weight$", r".\1.default.weight", name): shapes[name] for name in sorted(shapes)}


def load_adapter(model: nn.Module, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Copy the adapter's matrices into the model's, checking every name and shape."""
    import torch

    tensors = _read_tensors(checkpoint.adapter_file)
    saved = {_neutral(name): tensor for name, tensor in tensors.items()}
    parameters = dict(model.named_parameters())
    unknown = saved.keys() - {_neutral(name) for name in shapes}
    if unknown:
        raise CheckpointError(f"{checkpoint.adapter_file}: {min(unknown)} is not a LoRA matrix of the model")
    for name, shape in shapes.items():
        tensor = saved.get(_neutral(name))
        if tensor is None:
            raise CheckpointError(f"{checkpoint.adapter_file}: lacks {name}")
        _check_shape(checkpoint.adapter_file, name, tensor.shape, shape)
        with torch.no_grad():
            parameters[name].copy_(tensor)


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
    return _read_optimizer(path, shapes)


def _read_own_moments(
    checkpoint: Checkpoint, path: Path, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Moments], AdamSettings]:
    facts = read_json(checkpoint.path / CHECKPOINT_JSON)
    tensors = _read_tensors(path)
    moments: dict[str, Moments] = {}
    for name, shape in shapes.items():
        if f"{name}.exp_avg" not in tensors:
            raise CheckpointError(f"{path}: lacks the moments of {name}")
        moments[name] = Moments(tensors[f"{name}.exp_avg"], tensors[f"{name}.exp_avg_sq"])
        _check_shape(path, name, moments[name].first_OI.shape, shape)
    return moments, AdamSettings(facts["step"], tuple(facts["betas"]), facts["eps"])


def _read_optimizer(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Moments], AdamSettings]:
    state = _load_pickled_tensors(path)
    if not isinstance(state, Mapping) or not {"state", "param_groups"} <= state.keys():
        raise CheckpointError(f"{path}: is not the state of a torch optimizer")
    if not state["state"]:
        raise CheckpointError(
            f"{path}: its state is empty (DeepSpeed and FSDP keep it elsewhere); consolidate it first"
        )
    keys = _keys_by_name(path, state, shapes)
    moments: dict[str, Moments] = {}
    for name, shape in shapes.items():
        entry = state["state"].get(keys[name])
        if entry is None or not {"exp_avg", "exp_avg_sq", "step"} <= entry.keys():
            held = "nothing" if entry is None else ", ".join(sorted(map(str, entry)))
            raise CheckpointError(
                f"{path}: holds {held} for {name}, not exp_avg, exp_avg_sq and step: was it trained with AdamW?"
            )
        _check_shape(path, name, entry["exp_avg"].shape, shape)
        moments[name] = Moments(entry["exp_avg"].float(), entry["exp_avg_sq"].float())
    group = state["param_groups"][0]
    step = int(state["state"][keys[next(iter(shapes))]]["step"])
    return moments, AdamSettings(step, tuple(group["betas"]), float(group["eps"]))


def _keys_by_name(path: Path, state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The optimizer's key of every parameter: by name where it has names (FSDP), else by its place in the groups."""
    names = list(shapes)
    if all(isinstance(key, str) for key in state["state"]):
        by_neutral = {_neutral(key): key for key in state["state"]}
        return {name: by_neutral.get(_neutral(name)) for name in names}
    decayed = [name for name in names if not NO_DECAY_PATTERN.search(name)]
    ordered = decayed + [name for name in names if NO_DECAY_PATTERN.search(name)]
    groups: Sequence[Mapping[str, Any]] = state["param_groups"]
    sizes = [len(group["params"]) for group in groups if group["params"]]
    if sum(sizes) != len(names) or len(sizes) > 2 or (len(sizes) == 2 and sizes[0] != len(decayed)):
        raise CheckpointError(
            f"{path}: groups of {', '.join(map(str, sizes))} parameters don't fit the adapter's "
            f"{len(names)} LoRA matrices: other parameters were trained too, or in other groups"
        )
    keys = [key for group in groups for key in group["params"]]
    return dict(zip(ordered, keys, strict=True))


def _neutral(name: str) -> str:
    """A parameter's name without what wrappers and adapter names put in."""
    for part in ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod."):
        name = name.replace(part, "")
    name = name.removeprefix("module.")
    return re.sub(r"\.(lora_[AB])\.[^.]+\.weight$", r".\1.weight", name)


def _check_shape(path: Path, name: str, found: Sequence[int], wanted: Sequence[int]) -> None:
    if tuple(found) != tuple(wanted):
        raise CheckpointError(f"{path}: {name} has shape {list(found)}, the model's has {list(wanted)}")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        tensors: dict[str, Tensor] = _load_pickled_tensors(path)
        return tensors
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is damaged: {error}") from error


def _load_pickled_tensors(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: holds more than tensors and numbers, and is not loaded") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: can't be read: {str(error).splitlines()[0]}") from error


def _first_file(folder: Path, names: Sequence[str], what: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: no {what} there ({' or '.join(names)})")


def import_checkpoint(saved: Path, destination: Path, shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
    """Write the Trainer's checkpoint `saved` in our format: adapter, moments by name, checkpoint.json last."""
    from safetensors.torch import save_file

    checkpoint = load_checkpoint(saved)
    moments, adam = read_moments(checkpoint, shapes)
    temporary = destination.with_name(f".{destination.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in ("adapter_config.json", checkpoint.adapter_file.name):
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
