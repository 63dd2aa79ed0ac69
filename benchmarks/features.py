"""Speed of the features stage against its floor, the model's own forward and backward pass, and against its peers.

    OMP_NUM_THREADS=1 python benchmarks/features.py [--only step sketch stage …] [--rows 400]

Prints a table of goals. Real rows and models come from ../shared; without it those parts are left out.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import yaml
from timing import SHARED, Goal, lora_model, now, plain_step, print_header, random_batch, seconds, show, side_by_side
from torch import Tensor, nn

from gradsift.config import load_config
from gradsift.encoding import Batch, Corpus, batches_by_length, pad_rows
from gradsift.features import FeatureMaker
from gradsift.gradients import PerExampleGradients, ProjectionConfig, adam_terms, build_projector
from gradsift.machine import RunFolder
from gradsift.model import AdamSettings, Checkpoint, Moments, add_saved_lora, load_adapter, load_base_model
from gradsift.pipeline import checkpoints_of, encode_stage, features_stage, run

MODEL = SHARED / "models" / "instruct-12m"
RANK, DIM, BUDGET, SHARD_ROWS = 128, 8192, 4096, 1024
AUTHORS_BLOCK, AUTHORS_INTERVAL = 128, 16


def main() -> None:
    """Print the table."""
    logging.disable(logging.WARNING)
    options = _options()
    print_header()
    for name in options.only:
        PARTS[name](options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rows", type=int, default=400, help="real rows of the whole stage")
    parser.add_argument("--rounds", type=int, default=4, help="how often each step is timed")
    parser.add_argument("--largest", type=int, default=16384, help="rows of the last point of the linearity test")
    return parser.parse_args()


# A batch against a plain training step


def step(options: argparse.Namespace) -> None:
    """Features of a batch / a plain training step of the same batch."""
    shapes = {"half supervised": (16, 256, 128, 1.0), "long prompts, short answers": (8, 512, 32, 0.8)}
    times: dict[tuple[str, str], float] = {}
    for dtype in ("float32", "bfloat16"):
        maker, plain = feature_maker(lora_model(dtype, RANK, MODEL)), plain_step(lora_model(dtype, RANK, MODEL))
        for what, (rows, tokens, supervised, bound) in shapes.items():
            batch = random_batch(rows, tokens, supervised)
            best = side_by_side(_calls(maker, plain, batch), options.rounds)
            times[dtype, what] = best["features"]
            note = f"{rows} × {tokens} tokens, {supervised} supervised; {best['features']:.2f} / {best['plain']:.2f} s"
            show(Goal(f"features / plain step, {dtype}, {what}", best["features"] / best["plain"], bound, note=note))
    for what in shapes:
        ratio = times["float32", what] / times["bfloat16", what]
        show(Goal(f"bf16 against float32, features, {what}", ratio, at_least=2.5, note=_bf16_units()))


def _calls(maker: FeatureMaker, plain: Callable[[Batch], None], batch: Batch) -> dict[str, Callable[[], object]]:
    return {"plain": lambda: plain(batch), "features": lambda: maker(batch)}


def _bf16_units() -> str:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    found = [unit for unit in ("amx_bf16", "avx512_bf16") if unit in flags]
    return f"this machine: {', '.join(found) or 'no bf16 unit'}"


def feature_maker(model: nn.Module, kind: str = "sketch", dim: int = DIM) -> FeatureMaker:
    """The engine with the reference form and random moments."""
    gradients = PerExampleGradients(model)
    device, adam = next(model.parameters()).device, AdamSettings(1, (0.9, 0.999), 1e-8)
    generator = torch.Generator().manual_seed(0)
    terms = {}
    for name, shape in gradients.shapes.items():
        first, second = torch.randn(shape, generator=generator), torch.rand(shape, generator=generator)
        terms[name] = adam_terms("reference", Moments(first * 1e-4, second * 1e-8).to(device), adam)
    config = ProjectionConfig.model_validate({"kind": kind, "dim": dim})
    return FeatureMaker(gradients, "reference", terms, build_projector(config, gradients.shapes))


def sketch(options: argparse.Namespace) -> None:
    """Features of a batch with sixteen times the numbers a row / with K = 8192."""
    makers = {dim: feature_maker(lora_model("float32", RANK, MODEL), dim=dim) for dim in (DIM, 16 * DIM)}
    batch = random_batch(16, 256, 128)
    best = side_by_side({str(dim): partial(maker, batch) for dim, maker in makers.items()}, options.rounds)
    small, large = best.values()
    note = f"16 × 256 tokens, float32; {large:.2f} / {small:.2f} s"
    show(Goal(f"features, K {16 * DIM} / K {DIM}", large / small, 1.05, note=note))


# The whole stage against a plain loop


def stage(options: argparse.Namespace) -> None:
    """Encoding and features of real rows / a plain loop over them; the selection in bf16 against that in float32."""
    if not SHARED.is_dir():
        return
    with tempfile.TemporaryDirectory() as folder:
        place, found = Path(folder), {}
        run(load_config(_config(place / "float32", options.rows)), until="warmup")
        trained = [str(path) for path in (place / "float32").glob("warmup/checkpoint-*")]
        for dtype in ("float32", "bfloat16"):
            config = load_config(_config(place / dtype / "timed", options.rows, dtype, trained))
            took = seconds(lambda config=config: (encode_stage(config), features_stage(config)))
            floor = plain_loop(config)
            run(config)
            found[dtype] = _selected(config.run)
            note = (
                f"{options.rows} real rows, encoding, model loading and checksums included; {took:.0f} / {floor:.0f} s"
            )
            show(Goal(f"features stage / plain loop, {dtype}", took / floor, 1.10, note=note))
        overlap = len(found["float32"] & found["bfloat16"]) / len(found["float32"])
        note = f"{len(found['float32'])} rows of {options.rows}, MMLU's examples as the target"
        show(Goal("top 5 % in bf16 that are float32's too", overlap, at_least=0.95, note=note))


def _config(folder: Path, rows: int, dtype: str = "float32", checkpoints: list[str] | None = None) -> Path:
    warmup = {"fraction": 0.1, "epochs": 1, "learning_rate": 5e-4, "batch_size": 8, "lora": {"r": RANK, "alpha": 512}}
    values = {
        "run_dir": str(folder),
        "model": {"name_or_path": str(MODEL), "dtype": dtype},
        "pool": [{"name": "pool", "path": str(SHARED / "data" / "pool.jsonl"), "limit": rows}],
        "targets": [{"name": "mmlu", "task": "mmlu", "path": str(SHARED / "data" / "targets" / "mmlu.jsonl")}],
        "encoding": {"template": "tulu", "max_length": 512},
        "warmup": {"checkpoints": checkpoints} if checkpoints else warmup,
        "features": {"projection": {"dim": DIM}, "tokens_per_batch": BUDGET},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def plain_loop(config: Any) -> float:
    """Seconds of forward and backward over the rows of pool and target, in batches of the same budget."""
    [checkpoint] = checkpoints_of(config)
    model = add_saved_lora(load_base_model(config.model, torch.device("cpu")), checkpoint.path).eval()
    _load(model, checkpoint)
    forward_backward = plain_step(model)
    start = now()
    for folder in (config.run.pool, config.run.target("mmlu")):
        corpus = Corpus(folder)
        rows = corpus.rows(0, corpus.num_rows)
        for positions in batches_by_length([row.num_tokens for row in rows], BUDGET):
            forward_backward(pad_rows([rows[position] for position in positions]))
    return now() - start


def _load(model: nn.Module, checkpoint: Checkpoint) -> None:
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters() if weight.requires_grad}
    load_adapter(model, checkpoint, shapes)


def _selected(folder: RunFolder) -> set[str]:
    table = pq.read_table(folder.scores("mmlu")).sort_by([("score", "descending")])
    return set(table["id"].to_pylist()[: table.num_rows // 20])


# The authors' loop


def authors(options: argparse.Namespace) -> None:
    """Examples a second against the authors' loop: one example at a time, its whole gradient, a dense projection."""
    model = lora_model("float32", RANK, MODEL)
    batch = random_batch(16, 256, 128)
    loop = AuthorsLoop(model, [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad])
    one = Batch(batch.input_ids_BT[:1], batch.attention_mask_BT[:1], batch.labels_BT[:1])
    loop.feature(one)
    gradient = min(seconds(lambda: loop.feature(one)) for _ in range(3))
    projection = loop.projection_seconds()
    maker = feature_maker(lora_model("float32", RANK, MODEL))
    maker(batch)
    ours = min(seconds(lambda: maker(batch)) for _ in range(3)) / 16
    note = (
        f"an example: theirs {gradient:.2f} s + projection {projection:.1f} s (16 at once, as they do; one of "
        f"{DIM // AUTHORS_BLOCK} blocks timed), ours {ours:.2f} s"
    )
    show(Goal("examples a second / the authors' loop", (gradient + projection) / ours, at_least=150, note=note))


@dataclass
class AuthorsLoop:
    """A re-statement of LESS/data_selection/collect_grad_reps.py and of TRAK's BasicProjector on a CPU."""

    model: nn.Module
    weights: list[tuple[str, nn.Parameter]]

    def feature(self, batch: Batch) -> Tensor:
        """Γ of one example, all matrices flattened into one vector."""
        self.model.zero_grad(set_to_none=True)
        self.model(
            input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, labels=batch.labels_BT
        ).loss.backward()
        gradient_P = torch.cat([weight.grad.flatten() for _, weight in self.weights if weight.grad is not None])
        first_P = second_P = torch.zeros_like(gradient_P)
        first_P = 0.9 * first_P + 0.1 * gradient_P
        second_P = 0.999 * second_P + 0.001 * gradient_P**2
        return first_P / torch.sqrt(second_P + 1e-8)

    def projection_seconds(self) -> float:
        """Seconds an example of the projection: of the first block of columns, as many times as there are blocks."""
        self.project_block()
        return seconds(self.project_block) * (DIM // AUTHORS_BLOCK) / AUTHORS_INTERVAL

    def project_block(self) -> Tensor:
        """One block of columns of the dense matrix, made anew, times the gradients of sixteen examples."""
        num_parameters, device = sum(weight.numel() for _, weight in self.weights), self.weights[0][1].device
        gradients_NP = torch.zeros(AUTHORS_INTERVAL, num_parameters, device=device)
        signs_PC = torch.empty(num_parameters, AUTHORS_BLOCK, device=device)
        signs_PC.bernoulli_(p=0.5, generator=torch.Generator(device).manual_seed(0))
        signs_PC *= 2.0
        signs_PC -= 1.0
        return gradients_NP @ signs_PC


# The dense projector, padding, linearity


def projection(options: argparse.Namespace) -> None:
    """`rademacher`, its random bits included, against the plain product with a matrix that is there."""
    for rows in (16, 64):
        block_BOI = torch.randn(rows, RANK, 384)
        config = ProjectionConfig(kind="rademacher", dim=DIM)
        projector = build_projector(config, {"A": (RANK, 384)})
        features_BK, signs_DK = torch.zeros(rows, DIM), torch.ones(RANK * 384, DIM)
        calls: dict[str, Callable[[], object]] = {
            "dense": lambda block=block_BOI, signs=signs_DK: block.flatten(1) @ signs,
            "ours": lambda block=block_BOI, into=features_BK, add=projector.add: add(into, block, "A"),
        }
        best = side_by_side(calls, options.rounds)
        note = (
            f"[{rows}, {RANK * 384:,}] × [{RANK * 384:,}, {DIM}]; 2 MB of signs a thread, the plain matrix has 1.6 GB"
        )
        show(Goal(f"rademacher / plain product, {rows} rows", best["ours"] / best["dense"], 1.5, note=note))


def padding(options: argparse.Namespace) -> None:
    """Padded tokens / real tokens over the real pool, batched shard by shard as the stage does."""
    if not SHARED.is_dir():
        return
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(_config(Path(folder) / "run", 10**9))
        took = seconds(lambda: encode_stage(config))
        lengths = Corpus(config.run.pool).column("num_tokens")
    shards = [lengths[start : start + SHARD_ROWS] for start in range(0, len(lengths), SHARD_ROWS)]
    padded = sum(len(batch) * shard[batch[0]] for shard in shards for batch in batches_by_length(shard, BUDGET))
    note = f"{len(lengths):,} rows, {sum(lengths):,} tokens, at most 512 a row; encoded in {took:.0f} s"
    show(Goal("padded / real tokens", padded / sum(lengths), 1.05, note=note))


def linear(options: argparse.Namespace) -> None:
    """Seconds a row of the features stage at growing numbers of rows; a tiny model, so that the rest weighs most."""
    if not SHARED.is_dir():
        return
    sizes = [options.largest // 16, options.largest // 4, options.largest]
    per_row = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            config = load_config(_tiny_config(Path(folder), size))
            encode_stage(config)
            per_row.append(seconds(lambda config=config: features_stage(config)) / Corpus(config.run.pool).num_rows)
    note = ", ".join(f"{size:,} rows: {1e3 * each:.2f} ms" for size, each in zip(sizes, per_row, strict=True))
    show(Goal("time a row, most rows / fewest", per_row[-1] / per_row[0], 1.10, note=note + " a row, 260 k parameters"))


def _tiny_config(folder: Path, rows: int) -> Path:
    config = yaml.safe_load(_config(folder / "run", rows).read_text())
    config["model"]["name_or_path"] = str(SHARED / "models" / "stories-260k")
    config["encoding"]["max_length"] = 96
    config["warmup"] = {"checkpoints": [str(SHARED / "golden" / "checkpoint-16")]}
    lines = (SHARED / "data" / "pool.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "target.jsonl").write_text("".join(lines[:20]), encoding="utf-8")
    config["targets"] = [{"name": "rows", "path": str(folder / "target.jsonl")}]
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "step": step,
    "sketch": sketch,
    "projection": projection,
    "authors": authors,
    "padding": padding,
    "linear": linear,
    "stage": stage,
}


if __name__ == "__main__":
    main()
