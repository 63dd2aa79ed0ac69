"""Speed of the engine on a card: a random Llama of a billion parameters, r = 128, K = 8192, bf16.

    python benchmarks/gpu.py [--toy] [--rows 32] [--tokens 512]

Prints examples a second, the ratio to a plain training step and to the authors' loop with its projection, the share
of the card's measured matrix peak, and the peak memory. `--toy`, or no card: a model of a few thousand parameters on
whatever is there, to see that it runs.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass

import torch
from features import AuthorsLoop, feature_maker
from timing import Goal, now, plain_step, print_header, random_batch, random_llama, seconds, show, side_by_side
from torch import nn

from gradsift.encoding import Batch
from gradsift.model import LoraConfig, add_lora

GIB = 1 << 30
BILLION = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
}
TOY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@dataclass(frozen=True)
class Scale:
    """What is measured: a model's sizes, its adapter's rank, a batch."""

    sizes: dict[str, int]
    rank: int
    rows: int
    tokens: int
    device: torch.device


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    scale = _scale(_options(arguments))
    print_header()
    batch = random_batch(scale.rows, scale.tokens, scale.tokens // 2).to(scale.device)
    maker, plain = feature_maker(_model(scale)), plain_step(_model(scale))
    best = side_by_side({"plain": lambda: plain(batch), "features": lambda: maker(batch)}, rounds=3)
    rate = scale.rows / best["features"]
    show(Goal("features, examples a second", rate, note=f"{scale.rows} × {scale.tokens} tokens, half supervised"))
    show(Goal("features / plain step", best["features"] / best["plain"], at_most=1.0))
    show(Goal("examples a second / the authors' loop", rate * _authors_seconds(scale, batch)))
    peak = matrix_peak(scale.device)
    share = pass_flops(scale) / best["features"] / peak
    show(
        Goal("share of the matrix peak", share, note=f"peak {peak / 1e12:,.2f} Tflop/s, measured; forward and backward")
    )
    if scale.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        maker(batch)
        show(Goal("peak memory, GiB", torch.cuda.max_memory_allocated() / GIB))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=512)
    return parser.parse_args(arguments)


def _scale(options: argparse.Namespace) -> Scale:
    if options.toy or not torch.cuda.is_available():
        return Scale(TOY, 4, 4, 32, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return Scale(BILLION, 128, options.rows, options.tokens, torch.device("cuda"))


def _model(scale: Scale) -> nn.Module:
    torch.manual_seed(0)
    with scale.device:
        base = random_llama(**scale.sizes).to(torch.bfloat16)
    return add_lora(base, LoraConfig(r=scale.rank, dropout=0.0)).to(scale.device).eval()


def _authors_seconds(scale: Scale, batch: Batch) -> float:
    """Seconds an example of the authors' loop, with one block of its projection timed for all."""
    model = _model(scale)
    loop = AuthorsLoop(model, [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad])
    one = Batch(batch.input_ids_BT[:1], batch.attention_mask_BT[:1], batch.labels_BT[:1])
    loop.feature(one)
    return seconds(lambda: loop.feature(one)) + loop.projection_seconds()


def pass_flops(scale: Scale) -> float:
    """Floating-point operations of a forward and backward pass through frozen weights and trained adapters."""
    model = _model(scale)
    head = model.get_output_embeddings().weight.numel()  # type: ignore[operator]
    adapter = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = sum(weight.numel() for weight in model.parameters()) - adapter - head
    tokens = scale.rows * scale.tokens
    return tokens * (4.0 * frozen + 6.0 * adapter) + 4.0 * head * tokens / 2


def matrix_peak(device: torch.device) -> float:
    """Operations a second of the best large bf16 product."""
    size = 8192 if device.type == "cuda" else 512
    left = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    left @ left
    best = float("inf")
    for _ in range(5):
        start = now()
        left @ left
        best = min(best, now() - start)
    return 2.0 * size**3 / best


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    main()
