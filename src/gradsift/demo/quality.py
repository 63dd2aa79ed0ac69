"""What the demo's base model can do: held-out loss and accuracy by skill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gradsift.data import Example
from gradsift.demo.data import Row
from gradsift.encoding import IGNORED, Batch, EncodedRow, Encoder, EncodingConfig, batches_by_length, pad_rows
from gradsift.machine import pick_device
from gradsift.model import ModelConfig, load_base_model, load_tokenizer

if TYPE_CHECKING:
    from torch import nn


MODEL = Path(__file__).parent / "model"
"""The base model that comes with the package; scripts/make_demo_model.py made it."""


def quality(folder: Path, rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """By skill: the mean loss of a right answer in nats a token, and the share of answers that are right greedily."""
    config = ModelConfig(name_or_path=str(folder), dtype="float32")
    encoded = _encoded(config, rows)
    model = load_base_model(config, pick_device()).eval()
    figures: dict[str, list[tuple[float, float]]] = {}
    for positions in batches_by_length([row.num_tokens for row in encoded], 4096, 128):
        batch = pad_rows([encoded[position] for position in positions]).to(pick_device())
        for position, figure in zip(positions, _figures(model, batch), strict=True):
            figures.setdefault(rows[position]["skill"], []).append(figure)
    return {skill: _means(found) for skill, found in sorted(figures.items())}


def _encoded(config: ModelConfig, rows: Sequence[Row]) -> list[EncodedRow]:
    examples = [Example(row["id"], row["messages"], "demo") for row in rows]
    results = Encoder(load_tokenizer(config), EncodingConfig()).encode(examples)
    return [result for result in results if isinstance(result, EncodedRow)]


def _figures(model: nn.Module, batch: Batch) -> list[tuple[float, float]]:
    """Of each row: its loss, and 1 where every token of the answer is the likeliest one after those before it."""
    import torch
    from torch.nn import functional

    with torch.inference_mode():
        output = model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False)
    logits_BTV, targets_BT = output.logits[:, :-1].float(), batch.labels_BT[:, 1:]
    supervised_BT = targets_BT != IGNORED
    losses_BT = functional.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, reduction="none", ignore_index=IGNORED)
    losses_B = losses_BT.sum(dim=1) / supervised_BT.sum(dim=1)
    right_B = ((logits_BTV.argmax(dim=-1) == targets_BT) | ~supervised_BT).all(dim=1)
    return list(zip(losses_B.tolist(), right_B.float().tolist(), strict=True))


def _means(found: Sequence[tuple[float, float]]) -> tuple[float, float]:
    losses, rights = zip(*found, strict=True)
    return round(sum(losses) / len(found), 4), round(sum(rights) / len(found), 4)
