"""An adapter's files: what its config says that counts, and its matrices, checked to be plain LoRA."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsift.errors import CheckpointError
from gradsift.model.facts import AdapterFacts, checked, damaged, read_object

if TYPE_CHECKING:
    from torch import Tensor


ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
LORA_WEIGHT = re.compile(r"\.(lora_[AB])\.weight$")
MEANINGLESS_KEYS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",  # the base has a fingerprint of its own
        "inference_mode",
        "lora_dropout",  # gradients are taken without dropout
        "megatron_core",
        "peft_version",
        "revision",
        "runtime_config",
        "task_type",
    }
)
"""Keys of adapter_config.json that change no gradient."""
VARIANT_KEYS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
)
"""Keys that, where set, make the adapter another thing than LoRA on linear layers."""
PLAIN_STARTS = ("", "true", "false", "gaussian", "orthogonal", "eva", "pissa", "olora")
"""Values of init_lora_weights that PEFT repeats exactly when it loads the adapter: the base is what it was trained on.

The others change the base by what is not saved beside the adapter (data, random numbers), or freeze a matrix.
"""


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The adapter's config as it stands in the folder; raises CheckpointError where it isn't one of plain LoRA."""
    path = folder / ADAPTER_CONFIG
    values = read_object(path)
    facts = checked(path, values, AdapterFacts)
    if facts.peft_type.upper() != "LORA":
        raise CheckpointError(f"{path}: is an adapter of the kind {facts.peft_type}; gradsift needs plain LoRA")
    variants = [key for key in VARIANT_KEYS if values.get(key)]
    if facts.bias != "none":
        variants.append(f"bias={facts.bias}")
    if str(facts.init_lora_weights or "").lower() not in PLAIN_STARTS:
        variants.append(f"init_lora_weights={facts.init_lora_weights}")
    if variants:
        raise CheckpointError(
            f"{path}: {', '.join(variants)}: gradsift needs plain LoRA on linear layers (no DoRA, biases, embeddings, "
            "modules_to_save or start that changes the base): train without"
        )
    return values


def adapter_meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of an adapter's config its gradients depend on: no empty values, sets in order."""
    return {
        key: sorted(value, key=str) if isinstance(value, list) else value
        for key, value in sorted(config.items())
        if key not in MEANINGLESS_KEYS and value not in (None, False, {}, [])
    }


def adapter_file(folder: Path) -> Path:
    """The adapter's weights; raises CheckpointError where there are none."""
    for name in ADAPTER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: no adapter there ({' or '.join(ADAPTER_FILES)})")


def lora_shapes(folder: Path, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the adapter's matrices by their names in the file, sorted; they must be plain LoRA's.

    What else the file may hold, the base's own tensors, is left out here and compared when the adapter is loaded.
    """
    path = adapter_file(folder)
    found = {name: shape for name, shape in sorted(tensor_shapes(path).items()) if not _may_be_the_bases(name)}
    for name, shape in found.items():
        if not LORA_WEIGHT.search(name) or len(shape) != 2 or 0 in shape:
            raise CheckpointError(
                f"{path}: {name} of shape {list(shape)} is not a matrix of plain LoRA on a linear layer: train without "
                "(no DoRA, biases, embeddings, convolutions)"
            )
    if not found:
        raise CheckpointError(f"{path}: holds no LoRA matrix")
    _require_ranks(folder, config, found)
    return found


def _may_be_the_bases(name: str) -> bool:
    """Whether the tensor isn't of an adapter: PEFT saves the base's embedding beside it where that was resized."""
    return name.endswith(".weight") and "lora_" not in name and "prompt" not in name


def _require_ranks(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise where the config's ranks aren't the matrices', before PEFT allocates what the config says."""
    for name, shape in shapes.items():
        rank = shape[0] if name.endswith(".lora_A.weight") else shape[1]
        said = rank_of(folder, config, LORA_WEIGHT.sub("", name).removeprefix("base_model.model."))
        if rank != said:
            raise CheckpointError(
                f"{folder / ADAPTER_CONFIG}: says rank {said}, the adapter's {name} has rank {rank}: they are not of "
                "one training"
            )


def rank_of(folder: Path, config: Mapping[str, Any], module: str) -> int:
    """The rank that the config gives a module, as PEFT reads it (peft.utils.other.get_pattern_key)."""
    patterns: Mapping[str, int] = config.get("rank_pattern") or {}
    try:
        return next(
            (rank for key, rank in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), config.get("r", 8)
        )
    except re.error as error:
        raise damaged(folder / ADAPTER_CONFIG, f"rank_pattern: {error}") from error


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a file; of safetensors only the header is read."""
    if path.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in read_tensors(path).items()}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, str(error)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors in a file, on the CPU."""
    if path.suffix != ".safetensors":
        return _only_tensors(path, load_pickled_tensors(path))
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise damaged(path, str(error)) from error


def _only_tensors(path: Path, value: Any) -> dict[str, Tensor]:
    import torch

    if not isinstance(value, Mapping) or not all(isinstance(item, torch.Tensor) for item in value.values()):
        raise damaged(path, "it holds other things than tensors by name")
    return {str(name): tensor for name, tensor in value.items()}


def load_pickled_tensors(path: Path) -> Any:
    """What torch.save wrote, if it is tensors, numbers and texts alone; raises CheckpointError else."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and numbers, or is damaged, and is not loaded: save it again"
        ) from error
    except Exception as error:  # a damaged pickle raises whatever its bytes spell
        raise damaged(path, f"{type(error).__name__}: {error}") from error


def require_shape(path: Path, name: str, found: Sequence[int], wanted: Sequence[int]) -> None:
    """Raise CheckpointError where a tensor of the file hasn't the shape of the model's."""
    if tuple(found) != tuple(wanted):
        raise CheckpointError(f"{path}: {name} has shape {list(found)}, the model's has {list(wanted)}")


def require_numbers(path: Path, name: str, tensor: Tensor, negative: bool = True) -> None:
    """Raise CheckpointError where a tensor holds NaN or infinity, or what is below zero and may not be."""
    if not tensor.is_floating_point():
        raise damaged(path, f"{name} is {tensor.dtype}, not floating point")
    if not bool(tensor.isfinite().all()):
        raise CheckpointError(
            f"{path}: {name} holds values that are not numbers (NaN or infinity): the training diverged, or the file "
            "is damaged; take an earlier checkpoint"
        )
    if not negative and bool((tensor < 0).any()):
        raise damaged(path, f"{name} holds negative second moments")
