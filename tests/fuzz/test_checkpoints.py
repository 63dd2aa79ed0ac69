"""Every file of a checkpoint damaged in many ways: it is read as it stands, or refused in one line; nothing else.

A case is drawn from its number alone, so that one that fails can be run again: `pytest -k case-17`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import copied, save_checkpoint

from gradsift.errors import UserError
from gradsift.model import ModelConfig, adapter_shapes, import_checkpoint, lora_at, read_moments
from gradsift.stages.warmup import WarmupConfig, saved_checkpoints

CASES = 160
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "(",
    "text",
    [],
    [[]],
    {},
    {"a": 1},
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> list[Path]:
    """A checkpoint of the Trainer's, and the same in our own format."""
    folder = tmp_path_factory.mktemp("saved")
    trainers = save_checkpoint(tiny_model_folder, folder / "checkpoint-4", rank_pattern={"v_proj": 2})
    (found,) = saved_checkpoints(WarmupConfig.model_validate({"checkpoints": [str(trainers)]}))
    import_checkpoint(trainers, folder / "own" / "checkpoint-4", adapter_shapes(found))
    return [trainers, folder / "own" / "checkpoint-4"]


def cut(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def flip(path: Path, draw: random.Random) -> None:
    """Some bits, most of them near the beginning, where the headers are."""
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 3, 30])):
        content[draw.randrange(draw.choice([20, 300, len(content)])) % len(content)] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def overwrite(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(draw.choice([0, 1, 8, 200])))


def grow(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.choice([1, 100])))


def make_folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    if draw.random() < 0.5:
        path.mkdir()


def change_values(path: Path, draw: random.Random) -> None:
    """Other values, at any depth of a JSON file or of an optimizer's state."""
    if path.suffix == ".json":
        path.write_text(json.dumps(changed(json.loads(path.read_text()), draw)))
    elif path.suffix == ".pt":
        torch.save(changed(torch.load(path, weights_only=True), draw), path)
    else:
        flip(path, draw)


def changed(value: Any, draw: random.Random) -> Any:
    """The value with something in it replaced, or left out."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or draw.random() < 0.2:
        return draw.choice(VALUES)
    key = draw.choice(keys)
    if draw.random() < 0.1:
        del value[key]
    else:
        value[key] = changed(value[key], draw)
    return value


DAMAGES: list[Callable[[Path, random.Random], None]] = [
    cut,
    flip,
    overwrite,
    grow,
    make_folder,
    change_values,
    change_values,
    change_values,
]


def use(folder: Path, base: Path) -> None:
    """All that the stages ask of a checkpoint."""
    (checkpoint,) = saved_checkpoints(WarmupConfig.model_validate({"checkpoints": [str(folder)]}))
    shapes = adapter_shapes(checkpoint)
    checkpoint.fingerprint()
    lora_at(ModelConfig(name_or_path=str(base), dtype="float32"), checkpoint, torch.device("cpu"))
    read_moments(checkpoint, shapes)


@pytest.mark.filterwarnings("ignore")  # PEFT's, of keys that it doesn't know
@pytest.mark.parametrize("case", range(CASES), ids=lambda case: f"case-{case}")
def test_a_damaged_checkpoint_is_read_or_refused_in_one_line(
    case: int, checkpoints: list[Path], tmp_path: Path, tiny_model_folder: Path
) -> None:
    draw = random.Random(case)
    folder = copied(draw.choice(checkpoints), tmp_path / "checkpoint-4")
    path = draw.choice(sorted(path for path in folder.iterdir() if path.name != "README.md"))
    draw.choice(DAMAGES)(path, draw)
    try:
        use(folder, tiny_model_folder)
    except UserError as refusal:
        assert len(str(refusal).splitlines()) == 1
        assert str(folder) in str(refusal)


def test_what_is_not_damaged_is_read(checkpoints: list[Path], tiny_model_folder: Path) -> None:
    for folder in checkpoints:
        use(folder, tiny_model_folder)
