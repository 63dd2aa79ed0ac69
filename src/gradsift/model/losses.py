"""The loss of every example of a batch, with logits and last layer computed only where a token is supervised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradsift.encoding import IGNORED, Batch
from gradsift.model.positions import alike_parts
from gradsift.model.tail import Shortcuts, only_positions, short_mlp

NO_SHORTCUTS = Shortcuts()

CHUNK_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits that are computed at once: as many as a core's cache holds, or enough to fill a card."""


def example_losses(model: nn.Module, batch: Batch, shortcuts: Shortcuts = NO_SHORTCUTS) -> Tensor:
    """Mean cross-entropy over the supervised tokens of each example, in nats: float32 [B].

    Logits are computed only where the next token is supervised: the output embedding sees those positions alone,
    whatever the model does with logits afterwards. With a plain head among the shortcuts, they are computed in chunks
    and never held together. The model sees no attention mask: it is causal and rows are padded on the right, so that
    no real token sees a padded one. Rows that a model would treat otherwise in company go through it apart. A row
    without a supervised token is our own mistake.
    """
    parts = alike_parts(model, batch)
    if len(parts) == 1:
        return _alike_losses(model, parts[0][1], shortcuts)
    losses_B = torch.cat([_alike_losses(model, part, shortcuts) for _, part in parts])
    places_B = torch.tensor([row for rows, _ in parts for row in rows], device=losses_B.device)
    return losses_B[places_B.argsort()]


def _alike_losses(model: nn.Module, batch: Batch, shortcuts: Shortcuts) -> Tensor:
    targets_BT = functional.pad(batch.labels_BT[:, 1:], (0, 1), value=IGNORED)
    supervised_BT = targets_BT != IGNORED
    num_tokens_B = supervised_BT.sum(dim=1)
    assert bool((num_tokens_B > 0).all()), "a row without a supervised token reached the model"
    positions_S = supervised_BT.flatten().nonzero()[:, 0]
    targets_S = targets_BT.flatten()[positions_S]
    head = shortcuts.head
    with only_positions(model, positions_S, keep_logits=head is None) as seen, short_mlp(shortcuts.mlp, positions_S):
        output = model(input_ids=batch.input_ids_BT, attention_mask=None, use_cache=False)
    if head is None:
        losses_S = functional.cross_entropy(output.logits.squeeze(0).float(), targets_S, reduction="none")
    else:
        losses_S = _ChunkedCrossEntropy.apply(seen[0], targets_S, head)  # type: ignore[no-untyped-call]
    rows_S = positions_S // targets_BT.shape[1]
    sums_B = torch.zeros(len(num_tokens_B), device=losses_S.device).index_add(0, rows_S, losses_S)
    return sums_B / num_tokens_B


def hidden_states(model: nn.Module, batch: Batch, positions_S: Tensor, shortcuts: Shortcuts = NO_SHORTCUTS) -> Tensor:
    """What the output embedding sees at these of the B·T positions, after the final norm: [S, H] in the model's dtype.

    Logits of one position alone are computed. No attention mask, as in `example_losses`; the rows must be alike
    (`alike_parts`).
    """
    with only_positions(model, positions_S, keep_logits=False) as seen, short_mlp(shortcuts.mlp, positions_S):
        model(input_ids=batch.input_ids_BT, attention_mask=None, use_cache=False)
    return seen[0]


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of every position, float32 [S], from hidden states [S, H] and the output embedding, in chunks.

    The gradient, where one is wanted, is formed in the forward pass, while a chunk's logits are at hand: S × V numbers
    never exist.
    """

    @staticmethod
    def forward(ctx: Any, hidden_SH: Tensor, targets_S: Tensor, head: nn.Linear) -> Tensor:
        rows = max(1, CHUNK_LOGITS[hidden_SH.device.type] // head.out_features)
        gradient_SH, losses = torch.empty_like(hidden_SH if ctx.needs_input_grad[0] else hidden_SH[:0]), []
        for start in range(0, len(hidden_SH), rows):
            part = slice(start, start + rows)
            log_probabilities_SV = functional.log_softmax(head(hidden_SH[part]).float(), dim=1)
            chosen_S1 = targets_S[part, None]
            losses.append(-log_probabilities_SV.gather(1, chosen_S1)[:, 0])
            if not ctx.needs_input_grad[0]:
                continue
            gradient_SV = log_probabilities_SV.exp_()
            gradient_SV.scatter_add_(1, chosen_S1, gradient_SV.new_full(chosen_S1.shape, -1.0))
            torch.mm(gradient_SV.to(head.weight.dtype), head.weight, out=gradient_SH[part])
        ctx.save_for_backward(gradient_SH)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_SH,) = ctx.saved_tensors
        return (gradient_SH * gradients[0][:, None]).to(gradient_SH.dtype), None, None
