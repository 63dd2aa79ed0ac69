"""How torch's threads should wait: speed on idle cores and beside a busy process, by OpenMP's settings.

    python benchmarks/waiting.py [--seconds 20] [--rounds 3] [--only training features generation]

Each setting is a process of its own (OpenMP reads the environment once), and the settings take turns. Prints work done
a second, medians over the rounds, and the default's against the best of all. Run it on idle cores. Needs ../shared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SETTINGS: dict[str, dict[str, str]] = {
    "gradsift's default": {},
    "OpenMP's own": {"GOMP_SPINCOUNT": "300000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
}
DEFAULT = next(iter(SETTINGS))
IDLE_GOAL, BUSY_GOAL = 0.95, 0.35


def main() -> None:
    """Print a table for every kind of work."""
    options = _options()
    if options.work:
        print(_rate(options.work, options.seconds))
        return
    print(_machine())
    for work in options.only:
        print(f"\n{work}, {UNITS[work]} a second\n\n| setting | idle | beside a busy process |\n| --- | --- | --- |")
        medians = _medians(work, options)
        for name, (idle, busy) in medians.items():
            print(f"| {name} | {idle:.3g} | {busy:.3g} |", flush=True)
        best = max(idle for idle, _ in medians.values())
        idle, busy = (rate / best for rate in medians[DEFAULT])
        print(
            f"\nthe default, of the best idle speed: {idle:.2f} (goal {IDLE_GOAL}), busy {busy:.2f} (goal {BUSY_GOAL})"
        )


def _medians(work: str, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """By setting: the work done a second on idle cores, and beside a busy process."""
    rates: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in SETTINGS}
    for _ in range(options.rounds):
        for name, environment in SETTINGS.items():
            rates[name][0].append(_measured(work, environment, options.seconds))
            with _busy_process():
                rates[name][1].append(_measured(work, environment, options.seconds))
    return {name: (statistics.median(idle), statistics.median(busy)) for name, (idle, busy) in rates.items()}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="time of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(WORK), default=list(WORK))
    parser.add_argument("--work", choices=list(WORK), help=argparse.SUPPRESS)
    return parser.parse_args()


def _measured(work: str, environment: dict[str, str], seconds: float) -> float:
    command = [sys.executable, __file__, "--work", work, "--seconds", str(seconds)]
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")}
    done = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


@contextmanager
def _busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _rate(work: str, seconds: float) -> float:
    """Units of work a second, after one that doesn't count."""
    from gradsift.machine import wait_politely

    wait_politely()
    do = WORK[work]()
    do()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        done += do()
    return done / (time.perf_counter() - start)


def _training() -> Callable[[], int]:
    """Steps of 8 rows of configs/compare-real.yaml's lengths: forward, backward, AdamW."""
    import torch
    from timing import SHARED, lora_model, random_batch

    from gradsift.model import example_losses

    model = lora_model("float32", 32, SHARED / "models" / "instruct-12m").train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)
    batches = [random_batch(2, tokens, tokens // 2) for tokens in (96, 160, 256, 512)]

    def step() -> int:
        torch.cat([example_losses(model, batch) for batch in batches]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return 1

    return step


def _features() -> Callable[[], int]:
    """Rows of 256 tokens, 8 at a time, at the paper's rank and K."""
    from features import MODEL, RANK, feature_maker
    from timing import lora_model, random_batch

    maker, batch = feature_maker(lora_model("float32", RANK, MODEL)), random_batch(8, 256, 128)

    def make() -> int:
        return len(maker(batch))

    return make


def _generation() -> Callable[[], int]:
    """Tokens of 8 answers of 32 tokens after prompts of 128."""
    import torch
    from timing import SHARED, lora_model, random_batch

    model = lora_model("float32", 32, SHARED / "models" / "instruct-12m").get_base_model()
    batch = random_batch(8, 128, 64)

    def write() -> int:
        with torch.no_grad():
            written = model.generate(
                batch.input_ids_BT,
                attention_mask=batch.attention_mask_BT,
                max_new_tokens=32,
                min_new_tokens=32,
                do_sample=False,
                pad_token_id=0,
            )
        return int(written[:, 128:].numel())

    return write


def _machine() -> str:
    from timing import machine

    return machine()


WORK: dict[str, Callable[[], Callable[[], int]]] = {
    "training": _training,
    "features": _features,
    "generation": _generation,
}
UNITS = {"training": "steps", "features": "rows", "generation": "tokens"}

if __name__ == "__main__":
    main()
