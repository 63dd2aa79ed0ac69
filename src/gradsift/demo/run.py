"""The demo's run: writes pool, targets and config, then the method and its rivals through the pipeline for every seed.

What is finished is not made again. Each seed is a run folder and a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gradsift.config import load_config
from gradsift.demo.data import Row, pool_rows, target_rows
from gradsift.demo.quality import MODEL
from gradsift.demo.skills import SKILLS
from gradsift.demo.table import METHODS, Outcomes, table
from gradsift.errors import ConfigError, nearest
from gradsift.machine import atomic_open, duration
from gradsift.pipeline import run

logger = logging.getLogger(__name__)

POOL_SEED, TARGET_SEED = 1, 2
"""Seed 0 made the base model's texts."""
TARGETS = ("counting", "sorting", "sequence")
"""Skills on letters and on numbers; the first is the default target."""


@dataclass(frozen=True)
class DemoSizes:
    """How large everything is."""

    pool_rows: int = 2000
    examples: int = 16
    held_out: int = 200
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 4
    projection: int = 2048
    own_processes: bool = True
    """A process a seed; else one after another in this one."""


def named_targets(text: str) -> tuple[str, ...]:
    """The targets that a command line asks for; raises ConfigError where one is no skill of the demo."""
    if text in ("", "all"):
        return TARGETS if text else TARGETS[:1]
    names = tuple(text.split(","))
    for name in names:
        if name not in SKILLS:
            raise ConfigError(f"--targets: the demo has no skill {name!r}{nearest(name, list(SKILLS))}")
    return names


def demo(out: Path, targets: Sequence[str] = TARGETS[:1], sizes: DemoSizes = DemoSizes()) -> str:
    """The table of every target and where the files are, as text."""
    start = time.monotonic()
    out = out.expanduser().resolve()
    _write_rows(out / "pool.jsonl", pool_rows(sizes.pool_rows, POOL_SEED))
    for target in targets:
        examples, held_out = target_rows(target, sizes.examples, sizes.held_out, TARGET_SEED)
        _write_rows(_examples_path(out, target), examples)
        _write_rows(_held_out_path(out, target), held_out)
    _write(out / "config.yaml", yaml.safe_dump(_config(out, targets, sizes), sort_keys=False))
    _do_seeds(out, sizes)
    text = "\n".join(line for target in targets for line in [*table(Outcomes(out, target, sizes.seeds)), ""])
    _write(out / "table.txt", text)
    return f"{text}\n{_places(out)}\ntime: {duration(time.monotonic() - start)}"


def _write_rows(path: Path, rows: Sequence[Row]) -> None:
    _write(path, "".join(json.dumps(row) + "\n" for row in rows))


def _write(path: Path, text: str) -> None:
    with atomic_open(path) as file:
        file.write(text.encode())


def _examples_path(out: Path, target: str) -> Path:
    return out / "targets" / f"{target}.jsonl"


def _held_out_path(out: Path, target: str) -> Path:
    return out / "targets" / f"{target}-held-out.jsonl"


def _config(out: Path, targets: Sequence[str], sizes: DemoSizes) -> dict[str, Any]:
    """The config of the first seed; a model this small needs a larger learning rate and smaller batches than 7B."""
    return {
        "run_dir": str(_run_dir(out, sizes.seeds[0])),
        "seed": sizes.seeds[0],
        "model": {"name_or_path": str(MODEL)},
        "pool": [{"name": "demo", "path": str(out / "pool.jsonl")}],
        "targets": [_target(out, target) for target in targets],
        "warmup": {
            "fraction": 0.05,
            "epochs": sizes.epochs,
            "learning_rate": 2.0e-3,
            "batch_size": 8,
            "lora": {"r": 8, "alpha": 32},
        },
        "features": {"projection": {"dim": sizes.projection}},
        "select": {"fraction": 0.05},
        "evaluate": {"base": True},
    }


def _run_dir(out: Path, seed: int) -> Path:
    return out / f"seed-{seed}"


def _target(out: Path, target: str) -> dict[str, str]:
    return {
        "name": target,
        "path": str(_examples_path(out, target)),
        "test_path": str(_held_out_path(out, target)),
        "metric": "exact_match",
    }


def _do_seeds(out: Path, sizes: DemoSizes) -> None:
    """All seeds at once: more processes than cores share them evenly, with one torch thread each."""
    if not sizes.own_processes:
        for seed in sizes.seeds:
            do_seed(out, seed)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(sizes.seeds), mp_context=context) as executor:
        for future in [executor.submit(_do_seed_alone, out, seed) for seed in sizes.seeds]:
            future.result()


def _do_seed_alone(out: Path, seed: int) -> None:
    """A seed in a process of its own, which has its own log file and says its lines with the seed before them."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"seed {seed}: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    with (out / f"seed-{seed}.log").open("a") as log, contextlib.redirect_stderr(log):
        do_seed(out, seed)


def do_seed(out: Path, seed: int) -> None:
    """Every method with one seed, on all the targets of the config."""
    with _one_thread():
        for method in METHODS:
            config = load_config(
                out / "config.yaml",
                [f"seed={seed}", f"run_dir={json.dumps(str(_run_dir(out, seed)))}", *METHODS[method]],
            )
            start = time.monotonic()
            run(config)
            logger.info("%s done in %s", method, duration(time.monotonic() - start))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread: matrices this small gain little from more, and lose tenfold where the cores are shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _places(out: Path) -> str:
    return "\n".join(
        [
            f"pool, targets, config: {out}; base model: {MODEL}",
            f"a run folder a seed: {out / 'seed-*'} (selection/, model/, evaluation/); this table: {out / 'table.txt'}",
            f"to change something: gradsift run {out / 'config.yaml'} run_dir={out / 'other'} key=value …",
        ]
    )
