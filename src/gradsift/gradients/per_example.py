"""Gradients of every example of a batch, one LoRA matrix at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradsift.encoding import Batch
from gradsift.errors import ConfigError
from gradsift.gradients.layers import Consume, LoraLayer, LoraProduct, MergedProduct, listed, lora_layers, lora_linears
from gradsift.model import example_losses, plain_head


class PerExampleGradients:
    """A model whose LoRA layers hand out per-example gradients, [B, O, I] float32 a matrix.

    No parameter asks autograd for its gradient: `LoraProduct` forms the blocks in the backward pass. Parameters that
    are trainable but not the weight of a plain LoRA linear are refused by name. The model is put in evaluation mode
    (no dropout) and its parameters are frozen.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = lora_layers(model)
        self.shapes = {name: tuple(linear.weight.shape) for name, linear in lora_linears(model).items()}
        self.model = model.eval().requires_grad_(False)
        self._anchor = torch.zeros((), device=next(model.parameters()).device, requires_grad=True)
        self._head = plain_head(self.model)
        self._pass: _Pass | None = None
        for layer in layers:
            layer.module.forward = partial(self._forward, layer, layer.module.forward)

    def __call__(self, batch: Batch, consume: Consume) -> Tensor:
        """The losses [B]; `consume(parameter, gradients_BOI)` is called once a matrix and owns the block."""
        self._pass = _Pass(batch.input_ids_BT.shape, consume, set(self.shapes))
        try:
            losses_B = example_losses(self.model, batch, self._head)
            losses_B.sum().backward()
            pending = self._pass.pending
        finally:
            self._pass = None
        if pending:
            raise ConfigError(f"LoRA parameters that take no part in the loss: {listed(pending)}")
        return losses_B.detach()

    def _forward(self, layer: LoraLayer, plain: Callable[..., Tensor], x_BTI: Tensor, **more: Any) -> Tensor:
        if self._pass is None:
            return plain(x_BTI, **more)
        self._pass.enter(layer, x_BTI.shape)
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
    entered: set[str] = field(default_factory=set)

    def enter(self, layer: LoraLayer, shape: torch.Size) -> None:
        """Note that the layer is used; raises ConfigError where per-example gradients of it can't be had."""
        name = layer.first[0]
        if shape[:-1] != self.batch_shape:
            raise ConfigError(
                f"{name} sees an input of shape {tuple(shape)}, not [batch, tokens, features]: per-example "
                "gradients of such a layer (a mixture of experts?) are not supported; take it out of target_modules"
            )
        if name in self.entered:
            raise ConfigError(f"{name} is used twice in one forward pass: take it out of target_modules")
        self.entered.add(name)

    def hand_out(self, name: str, block_BOI: Tensor) -> None:
        """Give a block to the consumer."""
        self.pending.discard(name)
        self.consume(name, block_BOI)
