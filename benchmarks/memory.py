"""Peak memory that the gradient engine adds to a plain LoRA training step of the same batch, on the CPU.

    python benchmarks/memory.py [MODEL_FOLDER] [--rows 4 16 64] [--tokens 256] [--rank 128]
                                [--dim 8192] [--dtype float16]

Bytes are those of torch's CPU allocator, replayed from the profiler's allocation events: live bytes above what was
live before the step. Plain: the losses' sum backward to the LoRA weights, no dropout, no optimizer. Engine: what
the features stage does with a batch, with the checkpoint's moments and a shard as it is stored on top. The bound:
3 blocks [B, largest LoRA matrix] + both moments + 3 [B, K], all float32, + one shard as stored.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from gradsift.encoding import IGNORED, Batch
from gradsift.features import FeatureMaker
from gradsift.gradients import AdamForm, AdamTerms, PerExampleGradients, ProjectionConfig, adam_terms, build_projector
from gradsift.model import AdamSettings, LoraConfig, ModelConfig, Moments, add_lora, example_losses, load_base_model
from gradsift.store import ShardBuilder, row_bytes

SHARD_ROWS = 1024
MIB = 1 << 20
FLOAT_BYTES = 4
NEED_MOMENTS = ("reference", "adamw")


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    model: Path | None
    rank: int
    dim: int
    dtype: str
    tokens: int


def main() -> None:
    """Print the table."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    options = _options()
    settings = Settings(options.model, options.rank, options.dim, options.dtype, options.tokens)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; MiB above the start")
    shard = f"K={settings.dim} in {settings.dtype}"
    print(f"model {settings.model or 'random'}, r={settings.rank}, {shard}, {settings.tokens} tokens a row")
    print(f"{'form':10} {'rows':>5} {'plain':>9} {'engine':>9} {'added':>9} {'bound':>9}  holds")
    for rows in options.rows:
        plain = plain_peak(settings, rows)
        for form in options.forms:
            print(_line(form, rows, plain, *engine_peak(settings, rows, form)), flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="a Llama's folder; default: random, 12 M parameters")
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--forms", nargs="+", choices=get_args(AdamForm), default=["sgd", "reference", "adamw"])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--dtype", default="float16", help="that the shard is stored in")
    return parser.parse_args()


def _line(form: str, rows: int, plain: int, engine: int, bound: int) -> str:
    added = engine - plain
    sizes = " ".join(f"{size / MIB:9.1f}" for size in (plain, engine, added, bound))
    return f"{form:10} {rows:5} {sizes}  {'yes' if added <= bound else 'NO'}"


def plain_peak(settings: Settings, rows: int) -> int:
    """Peak bytes of forward and backward to the LoRA weights."""
    model, batch = _lora_model(settings), _batch(settings, rows)

    def step() -> None:
        example_losses(model, batch).sum().backward()

    return peak_bytes(step)


def engine_peak(settings: Settings, rows: int, form: AdamForm) -> tuple[int, int]:
    """Peak bytes of the engine's step, and the bound on what it may add."""
    gradients, batch = PerExampleGradients(_lora_model(settings)), _batch(settings, rows)

    def step() -> None:
        builder = ShardBuilder(_meaning(settings), SHARD_ROWS)
        projector = build_projector(ProjectionConfig(dim=settings.dim), gradients.shapes)
        builder.put(range(rows), FeatureMaker(gradients, form, _terms(form, gradients.shapes), projector)(batch))

    return peak_bytes(step), _bound(settings, rows, gradients.shapes)


def _bound(settings: Settings, rows: int, shapes: dict[str, tuple[int, ...]]) -> int:
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    floats = 3 * max(sizes) * rows + 2 * sum(sizes) + 3 * rows * settings.dim
    return FLOAT_BYTES * floats + SHARD_ROWS * row_bytes(settings.dim, settings.dtype)


def _meaning(settings: Settings) -> dict[str, object]:
    return {"dtype": settings.dtype, "projection": {"dim": settings.dim}}


def peak_bytes(step: Callable[[], None]) -> int:
    """The most bytes that are live at once during the step, above those live before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return _peak([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])


def _peak(changes: Sequence[int]) -> int:
    live = peak = 0
    for change in changes:
        live += change
        peak = max(peak, live)
    return peak


def _lora_model(settings: Settings) -> nn.Module:
    torch.manual_seed(0)
    base = _loaded(settings.model) if settings.model else _random_llama()
    return add_lora(base, LoraConfig(r=settings.rank, dropout=0.0)).eval()


def _loaded(folder: Path) -> nn.Module:
    return load_base_model(ModelConfig(name_or_path=str(folder), dtype="float32"), torch.device("cpu"))


def _random_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    model: nn.Module = LlamaForCausalLM(config)
    model.name_or_path = "random"  # PEFT warns of a model without a name
    return model


def _batch(settings: Settings, rows: int) -> Batch:
    """Random tokens, the second half of each row supervised."""
    generator = torch.Generator().manual_seed(0)
    input_ids_BT = torch.randint(4, 4096, (rows, settings.tokens), generator=generator)
    labels_BT = input_ids_BT.clone()
    labels_BT[:, : settings.tokens // 2] = IGNORED
    return Batch(input_ids_BT, torch.ones_like(input_ids_BT), labels_BT)


def _terms(form: AdamForm, shapes: dict[str, tuple[int, ...]]) -> dict[str, AdamTerms]:
    if form not in NEED_MOMENTS:
        return {}
    adam = AdamSettings(1, (0.9, 0.999), 1e-8)
    return {
        name: adam_terms(form, Moments(torch.zeros(shape), torch.zeros(shape)), adam) for name, shape in shapes.items()
    }


if __name__ == "__main__":
    main()
