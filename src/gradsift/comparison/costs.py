"""What a selection and a training cost: seconds on this machine, and floating-point operations.

Operations are counted as is usual, 2 for each weight that multiplies a token: a forward pass takes 2 P T for P such
weights and T tokens, the backward pass through frozen weights as much again, and an adapter of A numbers 6 A T in all.
Attention scores, projections, and methods that read texts alone are left out: they are small beside it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradsift.baselines import REPRESENTATIONS
from gradsift.config import RunConfig
from gradsift.encoding import Corpus
from gradsift.machine import MANIFEST, read_record, write_record
from gradsift.model import ModelConfig, adapter_shapes, empty_model
from gradsift.pipeline import candidates_of, checkpoints_of
from gradsift.stages import warmup_rows

SECONDS_FILE = "seconds.json"


class Watch:
    """Seconds spent on each piece of work of a run folder, over all the times that it was begun."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / SECONDS_FILE

    def of(self, *pieces: str) -> float:
        """Seconds of these pieces together; a piece that was never begun took none."""
        known = self._known()
        return sum(known.get(piece, 0.0) for piece in pieces)

    @contextlib.contextmanager
    def timed(self, piece: str) -> Iterator[None]:
        """Add the time of the block to the piece, also where it is stopped by an error."""
        start = time.monotonic()
        try:
            yield
        finally:
            known = self._known()
            known[piece] = round(known.get(piece, 0.0) + time.monotonic() - start, 2)
            write_record(self._path, known)

    def _known(self) -> dict[str, float]:
        return read_record(self._path).facts if self._path.is_file() else {}


@dataclass(frozen=True)
class PassCost:
    """Operations for one token."""

    num_weights: int
    """P: of the model's matrices, the head included."""
    num_adapter: int = 0
    """A."""

    @property
    def forward(self) -> int:
        """One pass without gradients."""
        return 2 * (self.num_weights + self.num_adapter)

    @property
    def with_gradients(self) -> int:
        """Forward and backward with a frozen base."""
        return 4 * self.num_weights + 6 * self.num_adapter

    @property
    def full(self) -> int:
        """Forward and backward where every weight is trained."""
        return 6 * self.num_weights


def num_weights(config: ModelConfig) -> int:
    """P of a model, from its config alone: its matrices, but of the embeddings the head alone."""
    from torch import nn

    multiplied = (module for module in empty_model(config).modules() if not isinstance(module, nn.Embedding))
    weights = (weight for module in multiplied for weight in module.parameters(recurse=False))
    return sum(weight.numel() for weight in weights if weight.ndim == 2)


def less_flops(config: RunConfig) -> float:
    """Warmup and features of the pool, or its candidates, and of all targets, at every checkpoint."""
    checkpoints = checkpoints_of(config)
    adapter = sum(rows * columns for rows, columns in adapter_shapes(checkpoints[0]).values())
    cost = PassCost(num_weights(config.model), adapter)
    tokens = (_tokens(config) - _tokens_left_out(config)) * len(checkpoints)
    if config.warmup.checkpoints is None:
        tokens += _warmup_tokens(config) * config.warmup.epochs
    return float(cost.with_gradients * tokens)


def representation_flops(config: RunConfig, method: str) -> float:
    """One forward pass over the pool and, where the method is no score of a row alone, all targets."""
    tokens = _pool_tokens(config) if REPRESENTATIONS[method].is_score else _tokens(config)
    return float(PassCost(num_weights(config.model)).forward * tokens)


def tov_flops(config: RunConfig, target: str) -> float:
    """The training on the target's examples, and the forward pass over the pool after it.

    The pass before it is the method `loss`, which all targets share.
    """
    run, weights = config.run, num_weights(config.model)
    tuned = PassCost(weights, _adapter_size(run.tuned(target)))
    trained_on = read_record(run.tuned(target) / MANIFEST, ("num_tokens",)).facts["num_tokens"]
    return float(tuned.forward * _pool_tokens(config) + tuned.with_gradients * trained_on * config.baselines.tov.epochs)


def training_flops(config: RunConfig, folder: Path) -> float:
    """The training of the model in `folder`."""
    weights = num_weights(config.target_model)
    tokens = read_record(folder / MANIFEST, ("num_tokens",)).facts["num_tokens"] * config.train.epochs
    if config.train.method == "full":
        return float(PassCost(weights).full * tokens)
    return float(PassCost(weights, _adapter_size(folder)).with_gradients * tokens)


def _adapter_size(folder: Path) -> int:
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (no mapping)
    return sum(int(shape[0]) * int(shape[1]) for shape in shapes if len(shape) == 2)


def _tokens(config: RunConfig) -> int:
    """Of the pool and all targets."""
    targets = (Corpus(config.run.target(target.name)).manifest["num_tokens"] for target in config.targets)
    return _pool_tokens(config) + sum(map(int, targets))


def _pool_tokens(config: RunConfig) -> int:
    return int(Corpus(config.run.pool).manifest["num_tokens"])


def _tokens_left_out(config: RunConfig) -> int:
    """Of the pool's rows that are a candidate for no target."""
    candidates = candidates_of(config)
    if candidates is None:
        return 0
    left_out = np.asarray(Corpus(config.run.pool).column("num_tokens"))
    left_out[sorted({row for rows in candidates.values() for row in rows})] = 0
    return int(left_out.sum())


def _warmup_tokens(config: RunConfig) -> int:
    corpus = Corpus(config.run.pool)
    num_tokens = corpus.column("num_tokens")
    return sum(num_tokens[row] for row in warmup_rows(corpus.num_rows, config.warmup.fraction, config.seed))
