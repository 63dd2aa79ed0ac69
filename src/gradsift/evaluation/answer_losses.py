"""The loss of right answers: each completion after its prompt, in nats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from gradsift.encoding import IGNORED, EncodedRow, pad_rows
from gradsift.evaluation.batches import Batches, Report
from gradsift.evaluation.fitting import Fitted
from gradsift.model import example_losses, find_shortcuts


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """The loss of the right answer: its sum over the answer's tokens, in nats."""

    fitted: Fitted
    nats: float
    num_tokens: int
    """Its end mark is counted where it is learned."""


def completion_losses(model: nn.Module, rows: Sequence[Fitted], batches: Batches, report: Report) -> list[float]:
    """The sum of each row's loss over its completion's tokens, in nats."""
    device, shortcuts = next(model.parameters()).device, find_shortcuts(model)

    def losses(batch: Sequence[Fitted]) -> list[float]:
        encoded = [_encoded(row) for row in batch]
        means_B = example_losses(model, pad_rows(encoded).to(device), shortcuts)
        report(len(batch), sum(row.num_tokens for row in encoded))
        return [float(mean) * row.num_supervised for mean, row in zip(means_B.tolist(), encoded, strict=True)]

    return batches.run(rows, [len(row.input_ids) for row in rows], batches.read_tokens, losses)


def _encoded(row: Fitted) -> EncodedRow:
    encoded = unsupervised_row(row.input_ids)
    start = encoded.num_tokens - row.num_completion
    encoded.labels[start:] = encoded.input_ids[start:]
    return encoded


def unsupervised_row(ids: Sequence[int]) -> EncodedRow:
    """A row of these ids that nothing is learned from."""
    input_ids = np.asarray(ids, dtype=np.int32)
    return EncodedRow("", "", 0, None, input_ids, np.full(len(ids), IGNORED, dtype=np.int32))
