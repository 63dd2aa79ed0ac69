"""What the tests of whole runs share: writing configs and pools, and calling the command line as a user does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from gradsift.cli import main

SHARED = Path(__file__).resolve().parents[2] / "shared"

TINY: dict[str, Any] = {
    "seed": 0,
    "encoding": {"template": "tulu", "max_length": 128},
    "warmup": {
        "fraction": 0.5,
        "epochs": 2,
        "learning_rate": 1.0e-3,
        "batch_size": 4,
        "lora": {"r": 4, "alpha": 16, "dropout": 0.1},
    },
    "features": {"projection": {"dim": 64}, "shard_rows": 8, "store_dtype": "float32"},
    "select": {"fraction": 0.25},
}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def conversation(row_id: str, question: str, answer: str, **more: Any) -> dict[str, Any]:
    """A pool row in the messages format."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": row_id, **more, "messages": messages}


def small_pool(count: int = 24) -> list[dict[str, Any]]:
    """Rows of different lengths with ids that don't sort as they stand."""
    return [
        conversation(
            f"row-{(7 * i) % count:02d}", f"What is {i} and {i % 5}?" + " Say it." * (i % 7), f"It is {i + i % 5}."
        )
        for i in range(count)
    ]


def write_config(folder: Path, **sections: Any) -> Path:
    """A config file with the tiny settings, the sections given laid over them."""
    values = {"run_dir": str(folder / "run"), **TINY, **sections}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def tiny_run(folder: Path, model: Path, **sections: Any) -> Path:
    """A config with a small pool and a target of two subtasks, both written into `folder`."""
    pool = write_jsonl(folder / "pool.jsonl", small_pool())
    examples = [
        conversation(f"t{i}", f"How much is {i} and {i}?", f"It is {2 * i}.", kind="even" if i % 2 == 0 else "odd")
        for i in range(4)
    ]
    target = write_jsonl(folder / "target.jsonl", examples)
    defaults = {
        "model": {"name_or_path": str(model), "dtype": "float32"},
        "pool": [{"name": "pool", "path": str(pool)}],
        "targets": [{"name": "sums", "path": str(target), "subtask_column": "kind"}],
    }
    return write_config(folder, **{**defaults, **sections})


def gradsift(*arguments: str | Path) -> int:
    """The command line in this process; its exit status."""
    return main([str(argument) for argument in arguments])


def gradsift_process(*arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "gradsift.cli", *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def stored_features(folder: Path) -> dict[str, torch.Tensor]:
    """The features of a store by row id, read with safetensors alone, as another tool would."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("shard-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            features = file.get_tensor("features").float() * file.get_tensor("scales")[:, None]
            found |= dict(zip(json.loads(file.metadata()["ids"]), features, strict=True))
    return found


def without_checks(shard: Path) -> None:
    """Write a shard as it was before shards held checksums of their own."""
    with safe_open(shard, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, shard, {name: metadata[name] for name in ("ids", "sources")})


def largest_relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest relative error of a row, in the Euclidean norm."""
    difference = torch.linalg.vector_norm(found - expected, dim=-1)
    return float((difference / torch.linalg.vector_norm(expected, dim=-1)).max())
