"""Gradients of every example of a batch, one LoRA matrix at a time."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from gradsift.encoding import Batch
from gradsift.errors import ConfigError
from gradsift.gradients.layers import Consume, LoraLayer, LoraProduct, MergedProduct, listed, lora_layers, lora_linears
from gradsift.model import Shortcuts, alike_parts, example_losses, find_shortcuts

ROUTED = re.compile(r"(^|\.)experts\.")
"""Modules that see the tokens that a router gives them, in its order."""


class PerExampleGradients:
    """A model whose LoRA layers hand out per-example gradients, [B, O, I] float32 a matrix.

    No parameter asks autograd for its gradient: `LoraProduct` forms the blocks in the backward pass. Parameters that
    are trainable but not the weight of a plain LoRA linear are refused by name. The model is put in evaluation mode
    (no dropout) and its parameters are frozen, until `release`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = lora_layers(model)
        self.shapes = {name: tuple(linear.weight.shape) for name, linear in lora_linears(model).items()}
        self._was_training, self.model = model.training, model.eval().requires_grad_(False)
        self._anchor = torch.zeros((), device=next(model.parameters()).device, requires_grad=True)
        self._pass: _Pass | None = None
        for layer in self.layers:
            layer.module.forward = partial(self._forward, layer, layer.module.forward)

    def __call__(self, batch: Batch, consume: Consume) -> Tensor:
        """The losses [B]; `consume(parameter, gradients_BOI)` is called once a matrix and owns the block.

        The rows must be alike in their positions (`model.alike_parts`).
        """
        found = _Pass(batch.input_ids_BT.shape, consume, set(self.shapes))
        losses_B = self._run(found, batch, self._shortcuts)
        if found.refused:
            raise ConfigError(f"{next(iter(found.refused.values()))}; take it out of target_modules")
        if found.pending:
            raise ConfigError(f"LoRA parameters that take no part in the loss: {listed(found.pending)}")
        return losses_B

    def uncovered(self, batch: Batch) -> dict[str, str]:
        """The modules with an adapter whose gradients can't be had, and why; the others' gradients are dropped."""
        found = _Pass(batch.input_ids_BT.shape, lambda *_: None, set(self.shapes))
        self._run(found, batch, Shortcuts())
        unused = {layer.path for layer in self.layers if {layer.first[0], layer.second[0]} & found.pending}
        return {**{path: f"{path} takes no part in the loss" for path in sorted(unused)}, **found.refused}

    def release(self) -> None:
        """Make the model what it was before: its adapter trains again."""
        for layer in self.layers:
            del layer.module.forward
            for _, linear in (layer.first, layer.second):
                linear.weight.requires_grad_(True)
        self.model.train(self._was_training)

    @cached_property
    def _shortcuts(self) -> Shortcuts:
        return find_shortcuts(self.model)

    def _run(self, found: _Pass, batch: Batch, shortcuts: Shortcuts) -> Tensor:
        assert len(alike_parts(self.model, batch)) == 1, "rows of different positions in one batch"
        self._pass = found
        try:
            losses_B = example_losses(self.model, batch, shortcuts)
            if losses_B.requires_grad:  # not where every layer was refused
                losses_B.sum().backward()
        finally:
            self._pass = None
        return losses_B.detach()

    def _forward(self, layer: LoraLayer, plain: Callable[..., Tensor], x: Tensor, **more: Any) -> Tensor:
        if self._pass is None:
            return plain(x, **more)
        if not self._pass.enters(layer, x.shape):  # an error is on its way: the numbers don't matter
            return layer.module.base_layer(x, **more)  # type: ignore[operator, no-any-return]
        x_BTI = x.reshape(*self._pass.batch_shape, x.shape[-1])
        return self._product(layer, x_BTI, **more).view(*x.shape[:-1], -1)

    def _product(self, layer: LoraLayer, x_BTI: Tensor, **more: Any) -> Tensor:
        assert self._pass is not None
        merged: Callable[..., Tensor] = MergedProduct.apply
        if x_BTI.dtype == torch.float32 and layer.gains_by_merging(self._pass.batch_shape.numel()):
            return merged(x_BTI, self._anchor, layer, self._pass.hand_out)
        base_BTO = layer.module.base_layer(x_BTI, **more)  # type: ignore[operator]
        product: Callable[..., Tensor] = LoraProduct.apply
        return product(base_BTO, x_BTI, self._anchor, layer, self._pass.hand_out)


@dataclass
class _Pass:
    """What a forward and backward pass has met so far."""

    batch_shape: torch.Size
    consume: Consume
    pending: set[str]
    """Parameters whose gradients have not come yet."""
    refused: dict[str, str] = field(default_factory=dict)
    """Modules of which per-example gradients can't be had, and why."""
    entered: set[str] = field(default_factory=set)

    def enters(self, layer: LoraLayer, shape: torch.Size) -> bool:
        """Note that the layer is used; False where per-example gradients of it can't be had."""
        if not is_of_tokens(shape, self.batch_shape, layer.path):
            self.refused[layer.path] = (
                f"{layer.path} sees an input of shape {tuple(shape)}, not [batch, tokens, features]: per-example "
                "gradients of such a layer (a mixture of experts?) are not supported"
            )
        elif layer.path in self.entered:
            self.refused[layer.path] = f"{layer.path} is used twice in one forward pass"
        self.entered.add(layer.path)
        return layer.path not in self.refused

    def hand_out(self, name: str, block_BOI: Tensor) -> None:
        """Give a block to the consumer."""
        self.pending.discard(name)
        self.consume(name, block_BOI)


def is_of_tokens(shape: torch.Size, batch_shape: torch.Size, path: str) -> bool:
    """Whether an input [..., I] holds the batch's tokens, each once and in their order.

    So it is where its axes are the batch's [B, T], whatever axes of 1 stand among them (attention with latent keys:
    [B, 1, T, I]), or [B·T], as of a model that works on a list of tokens. What a router gives to an expert can be as
    many tokens in another order.
    """
    axes = [size for size in shape[:-1] if size != 1]
    if axes == [size for size in batch_shape if size != 1]:
        return True
    return axes == [batch_shape.numel()] and not ROUTED.search(path)
