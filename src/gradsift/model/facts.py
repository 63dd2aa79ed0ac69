"""Facts that stand in a checkpoint's JSON files, checked against what such a file must hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gradsift.errors import CheckpointError

LARGEST_STEP = 1 << 53
"""No training takes as many steps; a larger number has no exact float."""

Facts = TypeVar("Facts", bound=BaseModel)
Real = Annotated[float, Field(allow_inf_nan=False)]
Step = Annotated[int, Field(ge=1, le=LARGEST_STEP)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class OwnFacts(BaseModel):
    """Our own checkpoint.json."""

    step: Step
    learning_rate: Real = Field(ge=0)
    betas: tuple[Beta, Beta]
    eps: Real = Field(ge=0)


class TrainerStep(BaseModel):
    """How far the Trainer had come: what trainer_state.json must say in any case."""

    global_step: Step


class LoggedRate(BaseModel):
    """An entry of the Trainer's log; those of an evaluation have no learning rate."""

    epoch: Real | None = None
    learning_rate: Real | None = Field(None, ge=0)


class TrainerLog(BaseModel):
    """What the Trainer logged on the way: needed where the config gives no learning rate."""

    epoch: Real = Field(gt=0)
    log_history: list[LoggedRate]


class AdapterFacts(BaseModel):
    """What adapter_config.json must hold for gradsift; PEFT knows more keys."""

    model_config = ConfigDict(extra="allow")

    peft_type: str
    r: int = Field(8, ge=1)
    lora_alpha: Real = 8.0
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] | None = None
    alpha_pattern: dict[str, Real] | None = None
    use_rslora: bool = False
    bias: str = "none"
    init_lora_weights: bool | str | None = True
    target_modules: str | list[str] | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a checkpoint's file; raises CheckpointError where it holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(value, dict):
        raise damaged(path, f"it holds a {type(value).__name__}, not an object")
    return value


def checked(path: Path, values: dict[str, Any], kind: type[Facts]) -> Facts:
    """The facts in `values`, which were read from `path`; raises CheckpointError naming the first that can't be."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key, message = ".".join(map(str, problem["loc"])), problem["msg"]
        shown = "" if problem["type"] == "missing" else f", not {str(problem['input'])[:60]!r}"
        raise damaged(path, f"{key}: {message[0].lower()}{message[1:]}{shown}") from error


def read_facts(path: Path, kind: type[Facts]) -> Facts:
    """The facts in a checkpoint's JSON file."""
    return checked(path, read_object(path), kind)


def damaged(path: Path, reason: str) -> CheckpointError:
    """What is said of a checkpoint's file that can't be used."""
    line = " ".join(reason.split())[:300]
    return CheckpointError(f"{path}: is damaged ({line}): save the checkpoint again, or take another")
