"""Speed and memory against bergson, building a LoRA gradient index of the same real rows: whole processes, CPU time.

    python -m venv OTHER && OTHER/bin/pip install bergson
    OMP_NUM_THREADS=1 python benchmarks/peers.py OTHER/bin/bergson [--rows 200]

Both see the same tokens (a Tulu chat template), batches of 4,096 of them, float32, one thread. bergson: plain
gradients, 16 × 16 numbers a matrix. gradsift: exact Γ with both moments, K = 8192.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from timing import SHARED, Goal, print_header, show

from gradsift.config import load_config
from gradsift.pipeline import run

TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token + '\\n' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
TOKENS_PER_BATCH = 4096
DIM = 8192
MIB = 1 << 20


@dataclass(frozen=True)
class Usage:
    """What a process took."""

    seconds: float
    peak_bytes: int


def main() -> None:
    """Print the table."""
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bergson", type=Path)
    parser.add_argument("--rows", type=int, default=200)
    options = parser.parse_args()
    print_header()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        _prepare(place, options.rows)
        few, many = (_both(place, options.bergson, rows) for rows in (options.rows // 4, options.rows))
    rates = [(options.rows - options.rows // 4) / (many[name].seconds - few[name].seconds) for name in many]
    ours, theirs = many["gradsift"], many["bergson"]
    note = f"{options.rows} rows; {ours.seconds:.0f} and {theirs.seconds:.0f} s of CPU"
    show(Goal("whole process, bergson's time / ours", theirs.seconds / ours.seconds, at_least=1.5, note=note))
    note = f"without the start (a quarter of the rows taken off): {rates[0]:.2f} and {rates[1]:.2f} rows a second"
    show(Goal("a row, bergson's time / ours", rates[0] / rates[1], at_least=1.5, note=note))
    note = f"{ours.peak_bytes / MIB:,.0f} and {theirs.peak_bytes / MIB:,.0f} MiB resident at the peak"
    show(Goal("memory, ours / bergson's", ours.peak_bytes / theirs.peak_bytes, at_most=1.0, note=note))


def _prepare(place: Path, rows: int) -> None:
    """The model with a template, and the rows in both layouts; a checkpoint from a short warmup."""
    shutil.copytree(SHARED / "models" / "instruct-12m", place / "model")
    for path in (place / "model").iterdir():
        path.chmod(0o644)
    (place / "model").chmod(0o755)
    (place / "model" / "chat_template.jinja").write_text(TEMPLATE)
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        described = json.loads((place / "model" / name).read_text())
        described[key] = TOKENS_PER_BATCH  # bergson takes no batch of more tokens than that
        (place / "model" / name).write_text(json.dumps(described))
    with (SHARED / "data" / "pool.jsonl").open(encoding="utf-8") as file:
        pool = [row for row in map(json.loads, file) if len(row["messages"]) == 2 and len(str(row)) < 2000][:rows]
    for count in (rows // 4, rows):
        _write(place / f"messages-{count}.jsonl", pool[:count])
        pairs = [[message["content"] for message in row["messages"]] for row in pool[:count]]
        _write(place / f"pairs-{count}.jsonl", [{"prompt": left, "completion": right} for left, right in pairs])
    _write(place / "target.jsonl", pool[:2])
    run(load_config(_config(place, rows, None)), until="warmup")


def _write(path: Path, rows: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _config(place: Path, rows: int, checkpoints: list[str] | None) -> Path:
    lora = {"r": 128, "alpha": 512, "dropout": 0.0}
    warmup = {"fraction": 0.25, "epochs": 1, "learning_rate": 5e-4, "batch_size": 4, "lora": lora}
    values = {
        "run_dir": str(place / f"run-{rows}-{'features' if checkpoints else 'warmup'}"),
        "model": {"name_or_path": str(place / "model"), "dtype": "float32"},
        "pool": [{"name": "pool", "path": str(place / f"messages-{rows}.jsonl")}],
        "targets": [{"name": "two", "path": str(place / "target.jsonl")}],
        "encoding": {"max_length": 1024},
        "warmup": {"checkpoints": checkpoints} if checkpoints else warmup,
        "features": {"projection": {"dim": DIM}, "tokens_per_batch": TOKENS_PER_BATCH},
    }
    path = place / f"config-{rows}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def _both(place: Path, bergson: Path, rows: int) -> dict[str, Usage]:
    trained = [str(path) for path in place.glob("run-*-warmup/warmup/checkpoint-*")]
    ours = [sys.executable, "-m", "gradsift.cli", "features", str(_config(place, rows, trained))]
    theirs = [str(bergson), "build", str(place / f"index-{rows}"), "--model", str(place / "model")]
    theirs += ["--precision", "fp32", "--projection_dim", "16", "--token_batch_size", str(TOKENS_PER_BATCH)]
    theirs += ["--peft_init_kwargs", "r=128,lora_alpha=512,target_modules=q_proj|k_proj|v_proj|o_proj"]
    theirs += ["--dataset", str(place / f"pairs-{rows}.jsonl"), "--loss_reduction", "mean"]
    theirs += ["--prompt_column", "prompt", "--completion_column", "completion"]
    return {"gradsift": _usage(ours), "bergson": _usage(theirs)}


def _usage(command: list[str]) -> Usage:
    """CPU seconds and peak memory of a process and its children; its output is shown where it fails."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)}\nended with status {status}:\n{output[-3000:]}")
    return Usage(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


if __name__ == "__main__":
    main()
