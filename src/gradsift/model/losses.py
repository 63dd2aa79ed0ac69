"""The loss of every example of a batch, with logits and last layer computed only where a token is supervised."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradsift.encoding import IGNORED, Batch
from gradsift.errors import ConfigError

CHUNK_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Logits that are computed at once: as many as a core's cache holds, or enough to fill a card."""


def example_losses(model: nn.Module, batch: Batch, head: nn.Linear | None = None) -> Tensor:
    """Mean cross-entropy over the supervised tokens of each example, in nats: float32 [B].

    Logits are computed only where the next token is supervised: the output embedding sees those positions alone,
    whatever the model does with logits afterwards. With `head` (`plain_head`), they are computed in chunks and
    never held together. The model sees no attention mask: it is causal and rows are padded on the right, so that no
    real token sees a padded one. A row without a supervised token is our own mistake.
    """
    targets_BT = functional.pad(batch.labels_BT[:, 1:], (0, 1), value=IGNORED)
    supervised_BT = targets_BT != IGNORED
    num_tokens_B = supervised_BT.sum(dim=1)
    assert bool((num_tokens_B > 0).all()), "a row without a supervised token reached the model"
    positions_S = supervised_BT.flatten().nonzero()[:, 0]
    targets_S = targets_BT.flatten()[positions_S]
    with only_positions(model, positions_S, keep_logits=head is None) as seen, _short_tail(model, positions_S):
        output = model(input_ids=batch.input_ids_BT, attention_mask=None, use_cache=False)
    if head is None:
        losses_S = functional.cross_entropy(output.logits.squeeze(0).float(), targets_S, reduction="none")
    else:
        losses_S = _ChunkedCrossEntropy.apply(seen[0], targets_S, head)  # type: ignore[no-untyped-call]
    rows_S = positions_S // targets_BT.shape[1]
    sums_B = torch.zeros(len(num_tokens_B), device=losses_S.device).index_add(0, rows_S, losses_S)
    return sums_B / num_tokens_B


def hidden_states(model: nn.Module, batch: Batch, positions_S: Tensor) -> Tensor:
    """What the output embedding sees at these of the B·T positions, after the final norm: [S, H] in the model's dtype.

    Logits of one position alone are computed. No attention mask, as in `example_losses`.
    """
    with only_positions(model, positions_S, keep_logits=False) as seen, _short_tail(model, positions_S):
        model(input_ids=batch.input_ids_BT, attention_mask=None, use_cache=False)
    return seen[0]


@contextlib.contextmanager
def only_positions(model: nn.Module, positions_S: Tensor, keep_logits: bool = True) -> Iterator[list[Tensor]]:
    """Let the output embedding see those of the B·T hidden states only, as one sequence, or but one of them.

    Gives the list that will hold the hidden states [S, H] once the model has run.
    """
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_BTH, *rest = args
        seen.append(hidden_BTH.flatten(0, 1).index_select(0, positions_S))
        return (seen[0][None] if keep_logits else seen[0][None, :1].detach(), *rest)

    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise ConfigError(f"{type(model).__name__} has no output embedding: not a causal language model")
    handle = head.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def plain_head(model: nn.Module) -> nn.Linear | None:
    """The output embedding, where it is a frozen linear layer whose output is the logits as they are; else None.

    Some models scale or cap their logits afterwards: one token is sent through to see.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if type(head) is not nn.Linear or any(parameter.requires_grad for parameter in head.parameters()):
        return None
    outputs: list[Tensor] = []
    handle = head.register_forward_hook(lambda _, __, output: outputs.append(output))
    try:
        with torch.no_grad():
            token = torch.zeros(1, 1, dtype=torch.int64, device=head.weight.device)
            logits = model(input_ids=token, use_cache=False).logits
    finally:
        handle.remove()
    return head if len(outputs) == 1 and logits is outputs[0] else None


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


@contextlib.contextmanager
def _short_tail(model: nn.Module, positions_S: Tensor) -> Iterator[None]:
    """Let the last layer's MLP see those of the B·T positions only: nothing looks at what it gives elsewhere.

    In evaluation mode alone: in training, gradient checkpointing may run the layer again.
    """
    mlp = None if model.training else last_mlp(model)
    if mlp is None:
        yield
        return
    shapes: list[torch.Size] = []

    def gather(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        shapes.append(args[0].shape)
        return (args[0].flatten(0, 1).index_select(0, positions_S)[None],)

    def scatter(_: nn.Module, __: Any, output_1SH: Tensor) -> Tensor:
        batch, tokens, _features = shapes[0]
        empty_NH = output_1SH.new_zeros(batch * tokens, output_1SH.shape[-1])
        return empty_NH.index_copy(0, positions_S, output_1SH[0]).view(batch, tokens, -1)

    handles = [mlp.register_forward_pre_hook(gather), mlp.register_forward_hook(scatter)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def last_mlp(model: nn.Module) -> nn.Module | None:
    """The MLP of the last layer, where the model is laid out as most are and it has no adapter; else None."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None  # type: ignore[operator]
    layers = getattr(decoder, "layers", None)
    mlp = getattr(layers[-1], "mlp", None) if isinstance(layers, nn.ModuleList) else None
    if not isinstance(mlp, nn.Module) or not type(mlp).__name__.endswith("MLP"):
        return None
    return None if any("lora_" in name for name, _ in mlp.named_parameters()) else mlp
