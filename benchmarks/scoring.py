"""Speed of scoring a new target, of selecting 5 % of a million rows, and of a start with nothing to do.

    python benchmarks/scoring.py [--rows 100000] [--dim 8192] [--checkpoints 4] [--subtasks 57] [--folder /tmp]

Writes synthetic stores (8.2 GB by default) below `--folder` and deletes them afterwards. Prints a table of goals.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import yaml
from timing import SHARED, Goal, print_header, show

from gradsift.data import SourceConfig, selected_lines
from gradsift.selection import ScoredRows, SelectConfig, choose, combined, ranking
from gradsift.stages.score import TargetSide, pool_influences
from gradsift.store import BITS, FeatureStore, ShardBuilder, StoreWriter, quantize

SHARD_ROWS = 1024
SIGNS = 16
"""So many signs take as many bytes as a float16 number."""
READ_BYTES = 1 << 20


def main() -> None:
    """Print the table."""
    logging.disable(logging.WARNING)
    options = _options()
    print_header(wall=True)
    for name in options.only:
        PARTS[name](options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--checkpoints", type=int, default=4)
    parser.add_argument("--subtasks", type=int, default=57)
    parser.add_argument("--selected-from", type=int, default=1_000_000, help="rows of the pool that is selected from")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    return parser.parse_args()


# Scores of a new target


def score(options: argparse.Namespace) -> None:
    """Bytes of the store that are scored in a second, against those that are read in a second and nothing else."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        stores = [
            synthetic_store(Path(folder) / str(index), index, options.rows, options.dim)
            for index in range(options.checkpoints)
        ]
        side = _side(options.subtasks, options.dim, options.checkpoints)
        paths = [path for store in stores for path in sorted(store.folder.glob("shard-*"))]
        size = sum(path.stat().st_size for path in paths)
        for state, prepare in (("from the disk", _forget), ("from the page cache", lambda _: None)):
            prepare(paths)
            reading = size / _wall(lambda: _read(paths))
            prepare(paths)
            scoring = size / _wall(lambda: _scores(stores, side))
            note = f"{size / 1e9:.1f} GB, {scoring / 1e9:.2f} of {reading / 1e9:.2f} GB/s, {size / scoring:.1f} s"
            show(
                Goal(
                    f"scoring / reading, {state}, {options.subtasks} subtasks",
                    scoring / reading,
                    at_least=0.7,
                    note=note,
                )
            )
        signs = synthetic_store(Path(folder) / "signs", 0, options.rows, SIGNS * options.dim, "int1")
        _show_signs(signs, stores[0], options)
        for store in (signs, stores[0]):
            _show_checks(store, options)
        _show_linear(stores, side, options)
        _show_quantised(stores[0], side)


def synthetic_store(folder: Path, seed: int, rows: int, dim: int, dtype: str = "float16") -> FeatureStore:
    """A finished store of random rows: one random shard, written again and again."""
    keys = [("pool", f"row-{row}") for row in range(rows)]
    writer = StoreWriter(folder, {"dtype": dtype, "projection": {"dim": dim}}, keys, SHARD_ROWS)
    writer.open()
    builders: dict[int, ShardBuilder] = {}
    for shard in range(writer.num_shards):
        size = len(writer.rows(shard))
        if size not in builders:
            builders[size] = _filled(writer.builder(shard), size, dim, seed)
        writer.write_built(shard, builders[size])
    return writer.finish()


def _filled(builder: ShardBuilder, num_rows: int, dim: int, seed: int) -> ShardBuilder:
    generator = torch.Generator().manual_seed(seed)
    for positions in torch.arange(num_rows).split(32):
        builder.put(positions.tolist(), torch.randn(len(positions), dim, generator=generator))
    return builder


def _side(subtasks: int, dim: int, checkpoints: int = 1) -> TargetSide:
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(subtasks, dim, generator=generator) for _ in range(checkpoints)]
    return TargetSide("target", [f"subtask-{index}" for index in range(subtasks)], directions, 0, "")


def _scores(stores: list[FeatureStore], side: TargetSide) -> torch.Tensor:
    [scores_NG] = pool_influences(stores, [1 / len(stores)] * len(stores), [side])
    return combined(scores_NG, "max")[0]


def _read(paths: list[Path]) -> None:
    buffer = bytearray(READ_BYTES)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _forget(paths: list[Path]) -> None:
    """Have the kernel drop the files' pages, so that they come from the disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _show_signs(signs: FeatureStore, store: FeatureStore, options: argparse.Namespace) -> None:
    """CPU time of scoring 1-bit rows over that of float16 rows of as many bytes, from the page cache, in turns."""
    score_each = {each.dtype: partial(_scores, [each], _side(options.subtasks, each.dim)) for each in (signs, store)}
    best = _least_cpu(score_each)
    times = ", ".join(f"{dtype} {1e6 * took / store.num_rows:.1f}" for dtype, took in best.items())
    what = f"scoring, 1 bit K {signs.dim} / float16 K {store.dim}, {options.subtasks} subtasks"
    note = f"CPU time of {store.num_rows:,} rows in turns, the least of five: {times} µs a row"
    show(Goal(what, best["int1"] / best["float16"], 3, note=note))


def _show_checks(store: FeatureStore, options: argparse.Namespace) -> None:
    """CPU time of scoring a store over that without comparing the checksums of its shards, in turns."""
    checked = partial(_scores, [store], _side(options.subtasks, store.dim))

    def unchecked() -> None:
        with mock.patch("gradsift.store.blocks._require_sum"):
            checked()

    best = _least_cpu({"with": checked, "without": unchecked})
    what = f"scoring, {store.dtype} K {store.dim}, with / without checksums"
    note = f"CPU time in turns, the least of five: {best['with']:.3f} and {best['without']:.3f} s"
    show(Goal(what, best["with"] / best["without"], 1.05, note=note))


def _show_linear(stores: list[FeatureStore], side: TargetSide, options: argparse.Namespace) -> None:
    """Seconds a row with all rows, over seconds a row with a quarter of them: one store against all four."""
    few = _side(options.subtasks, options.dim)
    one, all_ = _wall(lambda: _scores(stores[:1], few)), _wall(lambda: _scores(stores, side))
    note = f"{options.rows:,} rows of one checkpoint {one:.2f} s, of {len(stores)} {all_:.2f} s"
    show(Goal("scoring, time a row, most rows / fewest", all_ / len(stores) / one, 1.10, note=note))


def _show_quantised(store: FeatureStore, side: TargetSide) -> None:
    """Time of scoring a quantised store over that of the store it comes from, over the same ratio of their bytes."""
    stores = {bits: quantize(store, bits, store.folder.with_name(f"int{bits}")) for bits in BITS.values()}
    stores[16] = store
    times: dict[int, list[float]] = {bits: [] for bits in stores}
    few = _side(len(side.subtasks), store.dim)
    for _ in range(3):
        for bits, one in stores.items():
            times[bits].append(_wall(partial(_scores, [one], few)))
    sizes = {bits: sum(path.stat().st_size for path in one.folder.glob("shard-*")) for bits, one in stores.items()}
    for bits in BITS.values():
        time_ratio, bytes_ratio = min(times[bits]) / min(times[16]), sizes[bits] / sizes[16]
        note = (
            f"{min(times[bits]):.2f} of {min(times[16]):.2f} s, {sizes[bits] / 1e6:,.0f} of {sizes[16] / 1e6:,.0f} MB"
        )
        show(Goal(f"scoring, {bits} of 16 bits, time / bytes", time_ratio / bytes_ratio, 1.1, note=note))


def _least_cpu(functions: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The least CPU seconds of five calls of each, in turns: other jobs on the machine count little then."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(5):
        for name, function in functions.items():
            start = time.process_time()
            function()
            best[name] = min(best[name], time.process_time() - start)
    return best


def _wall(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


# Selecting


def select(options: argparse.Namespace) -> None:
    """Ranking a pool and writing its best 5 % as the user wrote them."""
    num_rows = options.selected_from
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        pool = Path(folder) / "pool.jsonl"
        _write_pool(pool, num_rows)
        rows = _scored_rows(num_rows)

        def chosen() -> None:
            config = SelectConfig(fraction=0.05)
            positions = choose(ranking(rows, config.order), rows, config).rows.tolist()
            lines = selected_lines(SourceConfig(name="pool", path=str(pool)), positions)
            (Path(folder) / "chosen.jsonl").write_bytes(b"\n".join(lines[row] for row in positions))

        note = f"{num_rows:,} rows, a JSONL file of {pool.stat().st_size / 1e6:.0f} MB; its lines are not parsed"
        show(Goal("selecting 5 % and writing it, seconds", _wall(chosen), 10, note=note))


def _scored_rows(num_rows: int) -> ScoredRows:
    """Rows of one source with random scores for one subtask."""
    score_N = np.random.default_rng(0).random(num_rows)
    return ScoredRows(
        ids=[f"row-{row}" for row in range(num_rows)],
        sources=["pool"] * num_rows,
        num_tokens_N=np.ones(num_rows, np.int64),
        score_N=score_N,
        subtask_scores_NG=score_N[:, None].astype(np.float32),
        num_read=num_rows,
    )


def _write_pool(path: Path, num_rows: int) -> None:
    answer = {"role": "assistant", "content": "An answer of some length. " * 12}
    with path.open("w", encoding="utf-8") as file:
        for row in range(num_rows):
            messages = [{"role": "user", "content": f"Question {row}?"}, answer]
            file.write(json.dumps({"id": f"row-{row}", "messages": messages}) + "\n")


# A start with nothing to do


def start(options: argparse.Namespace) -> None:
    """`gradsift features` in a process of its own, on a run folder whose stores are finished."""
    if not SHARED.is_dir():
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump(_finished(Path(folder))))
        command = [sys.executable, "-m", "gradsift.cli", "features", str(config)]
        subprocess.run(command, check=True, capture_output=True)
        took = min(_wall(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(3))
        show(Goal("gradsift features on a finished store, seconds", took, 3, note="2,000 rows, one checkpoint"))


def _finished(folder: Path) -> dict[str, object]:
    lines = (SHARED / "data" / "pool.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "target.jsonl").write_text("".join(lines[:20]), encoding="utf-8")
    return {
        "run_dir": str(folder / "run"),
        "model": {"name_or_path": str(SHARED / "models" / "stories-260k"), "dtype": "float32"},
        "pool": [{"name": "pool", "path": str(SHARED / "data" / "pool.jsonl"), "limit": 2000}],
        "targets": [{"name": "rows", "path": str(folder / "target.jsonl")}],
        "encoding": {"template": "tulu", "max_length": 64},
        "warmup": {"checkpoints": [str(SHARED / "golden" / "checkpoint-16")]},
    }


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {"score": score, "select": select, "start": start}


if __name__ == "__main__":
    main()
