"""Optimizer states of other trainers: Adam's moments by the model's parameter names, or why there are none.

The state of AdamW is that of torch (fused, foreach or plain), of apex, or of bitsandbytes in 32 bits, whose state1
and state2 are the same running means. Every other optimizer is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gradsift.errors import CheckpointError
from gradsift.model.adapter_files import load_pickled_tensors, require_numbers, require_shape
from gradsift.model.facts import LARGEST_STEP, damaged
from gradsift.model.moments import AdamSettings, Moments

NO_DECAY_PATTERN = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
"""Names that the Hugging Face Trainer puts in its second parameter group (Trainer.get_decay_parameter_names)."""
OTHER_OPTIMIZERS = {
    "max_exp_avg_sq": "AdamW with amsgrad, which divides by the largest second moment so far",
    "mu_product": "NAdam",
    "exp_avg_sq_row": "Adafactor",
    "exp_avg_sq_col": "Adafactor",
    "exp_inf": "Adamax",
    "square_avg": "RMSprop",
    "sum": "Adagrad",
    "momentum_buffer": "SGD or Muon",
    "absmax1": "an optimizer of 8-bit states",
    "qmap1": "an optimizer of 8-bit states",
    "z": "schedule-free AdamW",
}
"""What an entry of its state tells of an optimizer."""
MOMENT_KEYS = (("exp_avg", "exp_avg_sq"), ("state1", "state2"))
"""torch's names, and bitsandbytes'."""


def read_optimizer(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Moments], AdamSettings]:
    """Adam's moments of every LoRA matrix, on the CPU in float32, and its settings.

    Raises CheckpointError where the optimizer isn't Adam, numbers other parameters, or has other shapes.
    """
    entries, groups = _parts(path, load_pickled_tensors(path))
    keys = _keys_by_name(path, entries, groups, shapes)
    moments = {name: _moments(path, name, entries.get(keys[name]), shape) for name, shape in shapes.items()}
    first = next(iter(shapes))
    group = _group_of(groups, keys[first])
    return moments, _settings(path, group, entries[keys[first]])


def _parts(path: Path, state: Any) -> tuple[Mapping[Any, Any], Sequence[Mapping[str, Any]]]:
    """State by parameter, and groups, of what torch.optim.Optimizer.state_dict gives."""
    if not isinstance(state, Mapping) or not {"state", "param_groups"} <= state.keys():
        raise CheckpointError(f"{path}: is not the state of a torch optimizer")
    entries, groups = state["state"], state["param_groups"]
    if isinstance(entries, Mapping) and not entries:
        raise CheckpointError(
            f"{path}: its state is empty (SGD keeps none; DeepSpeed and FSDP keep it elsewhere: consolidate it first)"
        )
    if not (isinstance(entries, Mapping) and all(isinstance(entry, Mapping) for entry in entries.values())):
        raise damaged(path, "its state is not one of entries by parameter")
    if not (isinstance(groups, list) and groups and all(map(_is_group, groups))):
        raise damaged(path, "its parameter groups are not what torch saves")
    return entries, groups


def _is_group(group: Any) -> bool:
    listed = group.get("params") if isinstance(group, Mapping) else None
    return isinstance(listed, list) and all(isinstance(key, int | str) for key in listed)


def _moments(path: Path, name: str, entry: Mapping[str, Any] | None, shape: tuple[int, ...]) -> Moments:
    held = _held(entry)
    found = next((pair for pair in MOMENT_KEYS if entry is not None and {*pair} <= entry.keys()), None)
    other = next((OTHER_OPTIMIZERS[key] for key in entry or () if key in OTHER_OPTIMIZERS), None)
    if found is None and other is None and entry is not None and {"exp_avg", "state1"} & entry.keys():
        other = "Lion, or another that keeps one moment"
    if found is None or other is not None:
        tells = f", which is {other}'s state" if other else ""
        raise CheckpointError(
            f"{path}: holds {held} for {name}{tells}, not exp_avg, exp_avg_sq and step: train with AdamW, or set "
            "features.adam=sgd, which needs no state"
        )
    assert entry is not None
    tensors = [_tensor(path, f"{key} of {name}", entry[key], shape) for key in found]
    require_numbers(path, f"exp_avg of {name}", tensors[0])
    require_numbers(path, f"exp_avg_sq of {name}", tensors[1], negative=False)
    return Moments(tensors[0].float(), tensors[1].float())


def _held(entry: Mapping[str, Any] | None) -> str:
    return "nothing" if not entry else ", ".join(sorted(map(str, entry)))


def _tensor(path: Path, name: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(value, Tensor):
        raise damaged(path, f"{name} is a {type(value).__name__}")
    if not value.is_floating_point():
        raise CheckpointError(
            f"{path}: {name} is {value.dtype}: the states of an 8-bit optimizer can't be read; train with AdamW of "
            "32 bits (adamw_torch, paged_adamw_32bit), or set features.adam=sgd"
        )
    require_shape(path, name, value.shape, shape)
    return value


def _settings(path: Path, group: Mapping[str, Any], entry: Mapping[str, Any]) -> AdamSettings:
    """Step, betas and epsilon; apex counts its steps in the group."""
    for key in ("amsgrad", "maximize"):
        if group.get(key):
            raise CheckpointError(f"{path}: was trained with AdamW's {key}, whose steps are others: train without it")
    if "decoupled_weight_decay" in group and not {"amsgrad", "alpha"} & group.keys():
        raise CheckpointError(f"{path}: holds the state of RAdam; train with AdamW, or set features.adam=sgd")
    try:
        step = int(entry["step"] if "step" in entry else group["step"])
        first, second = (float(beta) for beta in group["betas"])
        eps = float(group["eps"])
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        reason = f"step, betas or eps can't be read: {type(error).__name__}: {error}"
        raise damaged(path, reason) from error
    if not (1 <= step <= LARGEST_STEP and 0 <= first < 1 and 0 <= second < 1 and 0 <= eps < float("inf")):
        raise damaged(path, f"Adam's step {step}, betas {first}, {second} and eps {eps} are not what it trains with")
    return AdamSettings(step, (first, second), eps)


def _group_of(groups: Sequence[Mapping[str, Any]], key: Any) -> Mapping[str, Any]:
    return next((group for group in groups if key in group["params"]), groups[0])


def _keys_by_name(
    path: Path,
    entries: Mapping[Any, Any],
    groups: Sequence[Mapping[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """The optimizer's key of every parameter: by name where it has names (FSDP), else by its place in the groups."""
    names = list(shapes)
    if all(isinstance(key, str) for key in entries):
        by_neutral = {neutral(key): key for key in entries}
        return {name: by_neutral.get(neutral(name)) for name in names}
    decayed = [name for name in names if not NO_DECAY_PATTERN.search(name)]
    ordered = decayed + [name for name in names if NO_DECAY_PATTERN.search(name)]
    sizes = [len(group["params"]) for group in groups if group["params"]]
    if sum(sizes) != len(names) or len(sizes) > 2 or (len(sizes) == 2 and sizes[0] != len(decayed)):
        raise CheckpointError(
            f"{path}: groups of {', '.join(map(str, sizes))} parameters don't fit the adapter's "
            f"{len(names)} LoRA matrices: other parameters were trained too, or in other groups"
        )
    keys = [key for group in groups for key in group["params"]]
    return dict(zip(ordered, keys, strict=True))


def neutral(name: str) -> str:
    """A parameter's name without what wrappers and adapter names put in."""
    for part in ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod."):
        name = name.replace(part, "")
    name = name.removeprefix("module.")
    return re.sub(r"\.(lora_[AB])\.[^.]+\.weight$", r".\1.weight", name)
