"""Gradients of every example of a batch, one LoRA matrix at a time, and the Adam-aware directions made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradsift.batching import Batch
from gradsift.checkpoints import AdamSettings, Moments
from gradsift.errors import ConfigError
from gradsift.lora import Consume, LoraLayer, LoraProduct, MergedProduct, listed, lora_layers, lora_linears
from gradsift.losses import example_losses, plain_head

AdamForm = Literal["reference", "adamw", "sgd", "sign"]

REFERENCE_BETAS = (0.9, 0.999)
REFERENCE_EPS = 1e-8


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


@dataclass(frozen=True)
class AdamTerms:
    """What Γ = (M + a g) / (√(V + b g²) + ε) takes from a checkpoint for one parameter: M, V float32 [O, I], a, b, ε.

    Both forms are of this kind; `reference` has its ε in V.
    """

    first_OI: Tensor
    second_OI: Tensor
    gradient_scale: float
    square_scale: float
    eps: float

    def part(self, start: int, stop: int) -> AdamTerms:
        """The terms of coordinates `start` … `stop - 1` of the flattened matrix; M and V are [D] then."""
        first_D, second_D = self.first_OI.flatten()[start:stop], self.second_OI.flatten()[start:stop]
        return replace(self, first_OI=first_D, second_OI=second_D)


def adam_terms(form: AdamForm, moments: Moments, adam: AdamSettings) -> AdamTerms:
    """The terms of `reference` or `adamw` at a checkpoint, METHOD section 2."""
    if form == "reference":
        beta1, beta2 = REFERENCE_BETAS
        second_OI = moments.second_OI.mul(beta2).add_(REFERENCE_EPS)
        return AdamTerms(moments.first_OI * beta1, second_OI, 1 - beta1, 1 - beta2, 0.0)
    beta1, beta2 = adam.betas
    first, second = (1 - beta ** (adam.step + 1) for beta in adam.betas)
    first_OI, second_OI = moments.first_OI * (beta1 / first), moments.second_OI * (beta2 / second)
    return AdamTerms(first_OI, second_OI, (1 - beta1) / first, (1 - beta2) / second, adam.eps)


def adam_feature(
    gradients_BOI: Tensor,
    form: AdamForm,
    moments: Moments | None = None,
    adam: AdamSettings | None = None,
    terms: AdamTerms | None = None,
) -> Tensor:
    """Γ of METHOD section 2, float32 [B, O, I] (or [B, D]); the input block is overwritten.

    `reference` is the authors' code: m' / √(v' + ε) with β = (0.9, 0.999), ε = 1e-8, no bias correction.
    `adamw` is the step that torch.optim.AdamW would take on that example alone, without weight decay.
    `sgd` is the gradient, `sign` its sign. The first two need moments and settings, or `adam_terms` of them.
    """
    if form == "sgd":
        return gradients_BOI
    if form == "sign":
        return gradients_BOI.sign_()
    if terms is None:
        assert moments is not None and adam is not None, f"the form {form} needs the moments of a checkpoint"
        terms = adam_terms(form, moments, adam)
    root_BOI = torch.addcmul(terms.second_OI, gradients_BOI, gradients_BOI, value=terms.square_scale).sqrt_()
    if terms.eps:
        root_BOI.add_(terms.eps)
    return gradients_BOI.mul_(terms.gradient_scale).add_(terms.first_OI).div_(root_BOI)
