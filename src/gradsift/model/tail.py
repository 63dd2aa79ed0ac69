"""The end of a model: the output embedding, and the last MLP, at some positions only.

Both are shortcuts: what is left out is what nothing looks at. Whether that is so in a model is tried on a few tokens.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradsift.errors import ConfigError

TRIED_TOKENS, TRIED_POSITIONS = 7, (1, 3, 6)


@dataclass(frozen=True)
class Shortcuts:
    """What of a model's end may be left out; nothing by default."""

    head: nn.Linear | None = None
    """The output embedding, where it is a frozen linear layer whose output is the logits as they are."""
    mlp: nn.Module | None = None
    """The last layer's MLP, where it takes tokens one by one and nothing but the end of the model sees its output."""


def find_shortcuts(model: nn.Module) -> Shortcuts:
    """The shortcuts that the model allows: some tokens are sent through it to see."""
    return Shortcuts(plain_head(model), last_mlp(model))


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

    handle = output_embedding(model).register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def output_embedding(model: nn.Module) -> nn.Module:
    """The layer that makes logits; raises ConfigError where there is none."""
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise ConfigError(f"{type(model).__name__} has no output embedding: not a causal language model")
    return head


def plain_head(model: nn.Module) -> nn.Linear | None:
    """The output embedding, where it is a frozen linear layer whose output is the logits as they are; else None.

    Some models scale or cap their logits afterwards: one token is sent through to see.
    """
    head = output_embedding(model)
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


@contextlib.contextmanager
def short_mlp(mlp: nn.Module | None, positions_S: Tensor) -> Iterator[None]:
    """Let the last layer's MLP see those of the B·T positions only: nothing looks at what it gives elsewhere."""
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
    """The MLP of the last layer, where it may be shortened; else None.

    It must have no adapter, take one tensor [B, T, H] and give one, by itself and in the place where it stands: what
    comes to the output embedding must be the same with it shortened. In evaluation mode alone: in training, gradient
    checkpointing may run the layer again.
    """
    mlp = None if model.training else _candidate(model)
    return mlp if mlp is not None and _takes_one_tensor(mlp) and _is_the_same_shortened(model, mlp) else None


def _candidate(model: nn.Module) -> nn.Module | None:
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None  # type: ignore[operator]
    layers = getattr(decoder, "layers", None)
    mlp = getattr(layers[-1], "mlp", None) if isinstance(layers, nn.ModuleList) and len(layers) else None
    if not isinstance(mlp, nn.Module) or any("lora_" in name for name, _ in mlp.named_parameters()):
        return None
    return mlp


def _takes_one_tensor(mlp: nn.Module) -> bool:
    return len(inspect.signature(mlp.forward).parameters) == 1


@torch.no_grad()
def _is_the_same_shortened(model: nn.Module, mlp: nn.Module) -> bool:
    """Whether a row's hidden states at some positions are the same with the MLP run on those positions alone."""
    device = next(model.parameters()).device
    ids_1T = torch.arange(TRIED_TOKENS, device=device)[None]
    positions_S = torch.tensor(TRIED_POSITIONS, device=device)
    calls: list[tuple[bool, int]] = []
    handle = mlp.register_forward_hook(lambda _, args, output: calls.append(_form(args, output)))
    try:
        whole_SH = _hidden(model, ids_1T, positions_S, None)
    finally:
        handle.remove()
    if calls != [(True, TRIED_TOKENS)]:
        return False
    difference = (_hidden(model, ids_1T, positions_S, mlp) - whole_SH).float().norm()
    rounding = 1e-4 if whole_SH.dtype == torch.float32 else 2e-2
    return bool(difference <= rounding * whole_SH.float().norm())


def _form(args: tuple[Any, ...], output: Any) -> tuple[bool, int]:
    """Whether a call took one tensor [1, T, H] and gave one, and T."""
    tensors = [value for value in (*args, output) if isinstance(value, Tensor)]
    shapes = {tuple(tensor.shape) for tensor in tensors}
    plain = len(args) == 1 and len(tensors) == 2 and len(shapes) == 1 and tensors[0].dim() == 3
    return plain, tensors[0].shape[1] if plain else 0


def _hidden(model: nn.Module, ids_BT: Tensor, positions_S: Tensor, mlp: nn.Module | None) -> Tensor:
    with only_positions(model, positions_S, keep_logits=False) as seen, short_mlp(mlp, positions_S):
        model(input_ids=ids_BT, attention_mask=None, use_cache=False)
    return seen[0]
