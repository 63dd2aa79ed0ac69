"""Makes the demo's base model from texts that gradsift.demo.data generates; needs no network.

    python scripts/make_demo_model.py [--out FOLDER]

Writes config.json, model.safetensors, the tokenizer, quality.json (loss and accuracy by skill) and pretraining.log. The
texts use wordings that neither the pool nor a target has, and a seed of their own.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gradsift.data import Example
from gradsift.demo.data import Row, base_rows
from gradsift.demo.quality import MODEL, quality
from gradsift.encoding import IGNORED, Batch, EncodedRow, Encoder, EncodingConfig, pad_rows

logger = logging.getLogger("make_demo_model")

SEED, QUALITY_SEED = 0, 3
"""1 and 2 make the demo's pool and targets."""
QUALITY_ROWS = 1200
NUM_ROWS, NUM_STEPS, BATCH_ROWS = 64_000, 1000, 64
LEARNING_RATE = 3e-3
QUESTION_WEIGHT = 0.1
"""Of a question's token in the loss; an answer's has 1. Most of a question is drawn at random and can't be learned."""
VOCABULARY = 768
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
SHAPE = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4}


def main() -> None:
    """Make the tokenizer and the model, and measure what the model can do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=MODEL)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    _log_into(out / "pretraining.log")
    torch.set_num_threads(1)
    versions = platform.python_version(), torch.__version__, transformers.__version__
    logger.info("python %s, torch %s, transformers %s", *versions)
    rows = base_rows(NUM_ROWS, SEED)
    tokenizer = _tokenizer(rows)
    model = _untrained(len(tokenizer))
    logger.info("%d parameters, %d tokens in the vocabulary", sum(map(torch.numel, model.parameters())), len(tokenizer))
    _pretrain(model, _encoded(tokenizer, rows))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    figures = quality(out, base_rows(QUALITY_ROWS, QUALITY_SEED))
    facts = {"rows": QUALITY_ROWS, "seed": QUALITY_SEED, "skills": figures}
    (out / "quality.json").write_text(json.dumps(facts, indent=1) + "\n")
    for skill, (loss, accuracy) in figures.items():
        logger.info("%-12s loss %.3f, accuracy %.3f", skill, loss, accuracy)


def _log_into(path: Path) -> None:
    handlers = [logging.StreamHandler(), logging.FileHandler(path, mode="w")]
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers)


def _tokenizer(rows: Sequence[Row]) -> Any:
    """A byte-level BPE tokenizer trained on the rows; every digit is a token of its own."""
    backend = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*SPECIAL_TOKENS.values(), "<|user|>", "<|assistant|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator((message["content"] for row in rows for message in row["messages"]), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL_TOKENS)


def _untrained(vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **SHAPE,
    )
    return LlamaForCausalLM(config)


def _encoded(tokenizer: Any, rows: Sequence[Row]) -> list[EncodedRow]:
    examples = [Example(row["id"], row["messages"], "base") for row in rows]
    results = Encoder(tokenizer, EncodingConfig(template="tulu")).encode(examples)
    return [result for result in results if isinstance(result, EncodedRow)]


def _pretrain(model: LlamaForCausalLM, rows: Sequence[EncodedRow]) -> None:
    """Every weight, on every token, at a learning rate that rises for a tenth of the steps and falls to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=NUM_STEPS, pct_start=0.1)
    batches, start, num_tokens = _batches(rows), time.monotonic(), 0
    model.train()
    for step in range(1, NUM_STEPS + 1):
        batch = next(batches)
        loss = _loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        num_tokens += int(batch.attention_mask_BT.sum())
        if step % 100 == 0:
            logger.info(
                "step %d: loss %.3f, %d tokens, %.0f s", step, loss.item(), num_tokens, time.monotonic() - start
            )


def _loss(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Mean over the tokens, a question's weighted less."""
    logits_BTV = model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False).logits
    targets_BT = batch.input_ids_BT[:, 1:]
    losses_BT = functional.cross_entropy(logits_BTV[:, :-1].transpose(1, 2), targets_BT, reduction="none")
    weights_BT = torch.where(batch.labels_BT[:, 1:] == IGNORED, QUESTION_WEIGHT, 1.0) * batch.attention_mask_BT[:, 1:]
    return (losses_BT * weights_BT).sum() / weights_BT.sum()


def _batches(rows: Sequence[EncodedRow]) -> Iterator[Batch]:
    """Batches of rows of like length, each row once before any comes again."""
    random, block = Random(SEED), 40 * BATCH_ROWS
    while True:
        order = random.sample(range(len(rows)), len(rows))
        for start in range(0, len(rows) - block + 1, block):
            positions = sorted(order[start : start + block], key=lambda position: rows[position].num_tokens)
            starts = list(range(0, block, BATCH_ROWS))
            random.shuffle(starts)
            for first in starts:
                yield pad_rows([rows[position] for position in positions[first : first + BATCH_ROWS]])


if __name__ == "__main__":
    main()
