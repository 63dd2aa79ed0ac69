"""The demo: a tiny base model, pool and target made on the spot, and the method run on them as on any other.

Gives back the summary of the run and which skills were selected. What is there already is used again.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import yaml

from gradsift.artifact import atomic_open
from gradsift.config import RunConfig, load_config
from gradsift.data import Example
from gradsift.demo_data import SKILLS, Row, pool_rows, target_rows
from gradsift.encoding import EncodedRow, Encoder, EncodingConfig
from gradsift.pipeline import run
from gradsift.runtime import Progress, pick_device

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

BASE_SEED, POOL_SEED, TARGET_SEED = 0, 1, 2
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


@dataclass(frozen=True)
class DemoSizes:
    """How large everything is; the defaults take about two minutes on two cores."""

    target_skill: str = "sorting"
    pool_rows: int = 2000
    target_rows: int = 8
    base_rows: int = 4000
    """Rows that the base model is pretrained on; none of them is in the pool."""
    base_steps: int = 400
    base_batch: int = 32
    vocabulary: int = 512
    hidden: int = 128
    layers: int = 3
    projection: int = 1024
    lora_rank: int = 8
    warmup_batch: int = 16


def demo(out: Path, sizes: DemoSizes = DemoSizes()) -> str:
    """The run's summary, and the share of each skill in the pool and in the selection, as text."""
    out = out.expanduser().resolve()
    _keep_rows(out / "pool.jsonl", pool_rows(sizes.pool_rows, POOL_SEED))
    _keep_rows(out / "target.jsonl", target_rows(sizes.target_skill, sizes.target_rows, TARGET_SEED))
    _keep_config(out, sizes)
    config = load_config(out / "config.yaml")
    with _one_thread():
        _keep_model(out / "model", sizes)
        text = run(config)
    return "\n".join([text, "", *_skill_table(out, config, sizes), "", *_places(out)])


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


def _keep_rows(path: Path, rows: Sequence[Row]) -> None:
    if path.is_file():
        return
    with atomic_open(path) as file:
        file.writelines(json.dumps(row).encode() + b"\n" for row in rows)


def _keep_config(out: Path, sizes: DemoSizes) -> None:
    if (out / "config.yaml").is_file():
        return
    values = {
        "run_dir": str(out / "run"),
        "model": {"name_or_path": str(out / "model")},
        "pool": [{"name": "demo", "path": str(out / "pool.jsonl")}],
        "targets": [{"name": sizes.target_skill, "path": str(out / "target.jsonl")}],
        "warmup": {
            "epochs": 4,
            "batch_size": sizes.warmup_batch,
            "learning_rate": 1.0e-3,
            "lora": {"r": sizes.lora_rank, "alpha": 4 * sizes.lora_rank},
        },
        "features": {"projection": {"dim": sizes.projection}},
        "select": {"fraction": 0.05},
    }
    with atomic_open(out / "config.yaml") as file:
        file.write(yaml.safe_dump(values, sort_keys=False).encode())


def _keep_model(folder: Path, sizes: DemoSizes) -> None:
    """Make and pretrain the base model where it isn't there yet."""
    if folder.is_dir():
        return
    rows = pool_rows(sizes.base_rows, BASE_SEED)
    tokenizer = _tokenizer(rows, sizes)
    model = _untrained(len(tokenizer), sizes)
    _pretrain(model, _encoded(tokenizer, rows), sizes)
    unfinished = folder.with_name(".model.tmp")
    model.save_pretrained(unfinished)  # type: ignore[operator]
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


def _tokenizer(rows: Sequence[Row], sizes: DemoSizes) -> Any:
    """A byte-level BPE tokenizer trained on the rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=sizes.vocabulary,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(rows), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL_TOKENS)


def _texts(rows: Iterable[Row]) -> Iterator[str]:
    return (f"<|{message['role']}|>\n{message['content']}\n" for row in rows for message in row["messages"])


def _untrained(vocabulary: int, sizes: DemoSizes) -> nn.Module:
    """A Llama with random weights that follow from BASE_SEED."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=3 * sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(BASE_SEED)
        model: nn.Module = LlamaForCausalLM(config)
    return model


def _encoded(tokenizer: Any, rows: Sequence[Row]) -> list[EncodedRow]:
    examples = [Example(row["id"], row["messages"], "base") for row in rows]
    results = Encoder(tokenizer, EncodingConfig()).encode(examples)
    return [result for result in results if isinstance(result, EncodedRow)]


def _pretrain(model: nn.Module, rows: Sequence[EncodedRow], sizes: DemoSizes) -> None:
    """Teach the model to answer in the chat format, all weights, at a learning rate that falls to zero."""
    import torch

    from gradsift.batching import pad_rows
    from gradsift.losses import example_losses

    device, random = pick_device(), Random(BASE_SEED)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=sizes.base_steps)
    with Progress("base model", sizes.base_steps, "steps") as progress:
        for _ in range(sizes.base_steps):
            batch = pad_rows(random.sample(rows, sizes.base_batch)).to(device)
            loss = example_losses(model, batch).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.advance(1, int(batch.attention_mask_BT.sum()))
    logger.info("base model: loss %.3f after %d steps", loss.item(), sizes.base_steps)


def _skill_table(out: Path, config: RunConfig, sizes: DemoSizes) -> list[str]:
    """Share of each skill among the pool's rows and among the selected ones."""
    pool = _skills(out / "pool.jsonl")
    chosen = _skills(config.run.selection(sizes.target_skill))
    lines = [f"skill        of {pool.total():,} in the pool   of {chosen.total():,} selected"]
    for skill in SKILLS:
        mark = "  <- the target's skill" if skill == sizes.target_skill else ""
        shares = pool[skill] / pool.total(), chosen[skill] / chosen.total()
        lines.append(f"{skill:12} {shares[0]:>18.1%}   {shares[1]:>14.1%}{mark}")
    return lines


def _skills(path: Path) -> Counter[str]:
    with path.open(encoding="utf-8") as file:
        return Counter(json.loads(line)["skill"] for line in file)


def _places(out: Path) -> list[str]:
    return [
        f"pool {out / 'pool.jsonl'}, target {out / 'target.jsonl'}, model {out / 'model'}",
        f"to change something: gradsift run {out / 'config.yaml'} run_dir={out / 'other'} key=value …",
    ]
