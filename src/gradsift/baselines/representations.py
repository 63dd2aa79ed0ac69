"""`REPRESENTATIONS`: what the base model alone gives of an example, K numbers a row; no warmup, no gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradsift.encoding import Batch
from gradsift.model import Shortcuts, example_losses, hidden_states


@dataclass(frozen=True)
class Base:
    """The base model, frozen and in evaluation mode, and the shortcuts that it allows."""

    model: nn.Module
    shortcuts: Shortcuts


@dataclass(frozen=True)
class Representation:
    """A kind of representation, stored under its name and matched with a target as LESS's features are."""

    represent: Callable[[Base, Batch], Tensor]
    """float32 [B, K] of a batch, without gradients; a row's numbers must not depend on its company."""
    strategy: str = "top"
    """The name in STRATEGIES by which its scores are meant to be selected."""
    dim: int | None = None
    """K; None: the size of the model's hidden states."""
    is_score: bool = False
    """The number itself, K being 1, is the score, the same for every target."""


def last_token(base: Base, batch: Batch) -> Tensor:
    """The last hidden state, after the final norm, of each row's last token: float32 [B, H]. RDS, arXiv 2402.04333."""
    batch_size, length = batch.input_ids_BT.shape
    starts_B = torch.arange(batch_size, device=batch.input_ids_BT.device) * length
    last_B = starts_B + batch.attention_mask_BT.sum(dim=1) - 1
    return hidden_states(base.model, batch, last_B, base.shortcuts).float()


def weighted_mean(base: Base, batch: Batch) -> Tensor:
    """Mean of the last hidden states, after the final norm, of each row's tokens: float32 [B, H].

    Token i of T, counted from 1, has the weight i / (1 + … + T). RDS+, arXiv 2503.01807; the weights are SGPT's, arXiv
    2202.08904. All tokens count, the prompt's and the answer's.
    """
    real_S = batch.attention_mask_BT.flatten().nonzero()[:, 0]
    hidden_SH = hidden_states(base.model, batch, real_S, base.shortcuts)
    rows = hidden_SH.float().split(batch.attention_mask_BT.sum(dim=1).tolist())
    return torch.stack([_position_weights(row_TH) @ row_TH for row_TH in rows])


def _position_weights(row_TH: Tensor) -> Tensor:
    positions_T = torch.arange(1, len(row_TH) + 1, device=row_TH.device, dtype=torch.float32)
    return positions_T / positions_T.sum()


def loss(base: Base, batch: Batch) -> Tensor:
    """Mean cross-entropy over each row's supervised tokens, in nats, the logarithm of its perplexity: float32 [B, 1].

    A control that knows nothing of the target. The highest comes first: the rows that the base finds hardest are those
    it could learn most from, or that are noise. The other end, what the base knows already, teaches it least.
    """
    return example_losses(base.model, batch, base.shortcuts)[:, None]


REPRESENTATIONS: dict[str, Representation] = {
    "rds": Representation(last_token),
    "rds+": Representation(weighted_mean, strategy="round_robin"),
    "loss": Representation(loss, dim=1, is_score=True),
}
