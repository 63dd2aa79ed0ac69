"""LoRA layers of a model: which there are, and their passes in one piece, with every example's gradients on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradsift.errors import ConfigError

Consume = Callable[[str, Tensor], None]
"""Takes a parameter's name and its gradients [B, O, I] float32, one block a matrix, and owns the block."""


@dataclass(frozen=True, eq=False)
class LoraLayer:
    """A linear layer with an adapter: y = base(x) + scaling · (x Aᵀ) Bᵀ."""

    path: str
    """The module's name in the model."""
    module: nn.Module
    """PEFT's; its base layer may be quantised."""
    first: tuple[str, nn.Linear]
    """The name of A's weight in the model, and A."""
    second: tuple[str, nn.Linear]
    scaling: float

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A [R, I] and B [O, R] in the dtype that the model computes in."""
        return self.first[1].weight.to(dtype), self.second[1].weight.to(dtype)

    def merged_weight(self) -> Tensor:
        """W + scaling · B A, float32 [O, I]."""
        first_RI, second_OR = self.factors(torch.float32)
        return torch.addmm(self.module.base_layer.weight, second_OR, first_RI, alpha=self.scaling)  # type: ignore

    def gains_by_merging(self, num_tokens: int) -> bool:
        """Whether making the merged weight twice costs less than half of what it saves.

        In float32 alone: bf16 would round the adapter away.
        """
        base = self.module.base_layer
        if type(base) is not nn.Linear or base.weight.dtype != torch.float32:
            return False
        return num_tokens * (base.in_features + base.out_features) > 4 * base.in_features * base.out_features


class LoraProduct(torch.autograd.Function):
    """Adds an adapter's product to its base layer's output, in place; backward, forms the gradients of A and B.

    PEFT's own forward pass goes over the output twice more (scaling, adding), in the adapter's dtype: float32 under
    a bf16 base. `anchor` is a number that asks for a gradient, so that the backward pass comes by here even where no
    input does.
    """

    @staticmethod
    def forward(
        ctx: Any, base_BTO: Tensor, x_BTI: Tensor, anchor: Tensor, layer: LoraLayer, consume: Consume
    ) -> Tensor:
        """The layer's output [B, T, O]."""
        first_RI, second_OR = layer.factors(base_BTO.dtype)
        x_BTI = x_BTI.to(base_BTO.dtype)
        hidden_BTR = x_BTI @ (layer.scaling * first_RI).T
        base_BTO.flatten(0, 1).addmm_(hidden_BTR.flatten(0, 1), second_OR.T)
        ctx.mark_dirty(base_BTO)
        ctx.save_for_backward(x_BTI, hidden_BTR)
        ctx.layer, ctx.consume = layer, consume
        return base_BTO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the base's output and of the input."""
        (gradient_BTO,) = gradients
        x_BTI, hidden_BTR = ctx.saved_tensors
        first_RI, second_OR = ctx.layer.factors(gradient_BTO.dtype)
        ctx.consume(ctx.layer.second[0], summed_outer_products(gradient_BTO, hidden_BTR))
        inner_BTR = gradient_BTO @ (ctx.layer.scaling * second_OR)
        ctx.consume(ctx.layer.first[0], summed_outer_products(inner_BTR, x_BTI))
        gradient_BTI = inner_BTR @ first_RI if ctx.needs_input_grad[1] else None
        return gradient_BTO, gradient_BTI, None, None, None


class MergedProduct(torch.autograd.Function):
    """The whole layer through its merged weight: of the adapter's six products in both passes, four are left."""

    @staticmethod
    def forward(ctx: Any, x_BTI: Tensor, anchor: Tensor, layer: LoraLayer, consume: Consume) -> Tensor:
        """The layer's output [B, T, O]."""
        ctx.save_for_backward(x_BTI)
        ctx.layer, ctx.consume = layer, consume
        bias: Tensor | None = layer.module.base_layer.bias  # type: ignore[union-attr, assignment]
        return torch.nn.functional.linear(x_BTI, layer.merged_weight(), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the input."""
        (gradient_BTO,), (x_BTI,), layer = gradients, ctx.saved_tensors, ctx.layer
        first_RI, second_OR = layer.factors(gradient_BTO.dtype)
        hidden_BTR = x_BTI @ (layer.scaling * first_RI).T
        ctx.consume(layer.second[0], summed_outer_products(gradient_BTO, hidden_BTR))
        inner_BTR = gradient_BTO @ (layer.scaling * second_OR)
        ctx.consume(layer.first[0], summed_outer_products(inner_BTR, x_BTI))
        return (gradient_BTO @ layer.merged_weight() if ctx.needs_input_grad[0] else None), None, None, None


def summed_outer_products(left_BTO: Tensor, right_BTI: Tensor) -> Tensor:
    """Σ_t left_t right_tᵀ of every example, float32 [B, O, I].

    On a CPU the sums of a bf16 product are float32 too, and rounded once to bf16: 0.04 % of an error that the bf16
    passes themselves make of 1 to 2 % (docs/performance.md).
    """
    left_BOT = left_BTO.transpose(1, 2)
    if left_BTO.is_cuda and left_BTO.dtype != torch.float32:
        return torch.bmm(left_BOT, right_BTI, out_dtype=torch.float32)
    return torch.bmm(left_BOT, right_BTI).float()


def lora_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The LoRA linears that train, by the name of their weight, in the model's order.

    Raises ConfigError naming every trainable parameter that is not the weight of one.
    """
    modules = dict(model.named_modules())
    found: dict[str, nn.Linear] = {}
    refused: list[str] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        module = modules[name.removesuffix(".weight")] if name.endswith(".weight") else None
        is_lora = ".lora_A." in name or ".lora_B." in name
        if is_lora and isinstance(module, nn.Linear):
            found[name] = module
        else:
            refused.append(name)
    if refused:
        raise ConfigError(
            f"trainable parameters that per-example gradients don't cover: {listed(refused)}; "
            "use plain LoRA on linear layers (no biases, embeddings, DoRA or modules_to_save)"
        )
    if not found:
        raise ConfigError("the model has no LoRA parameter: check target_modules")
    return found


def lora_layers(model: nn.Module) -> list[LoraLayer]:
    """The layers whose adapters train, in the model's order; raises ConfigError where one isn't plain LoRA."""
    linears, modules = lora_linears(model), dict(model.named_modules())
    layers = []
    for name, linear in linears.items():
        place, _, adapter = name.removesuffix(".weight").partition(".lora_A.")
        if not adapter:
            continue
        second = f"{place}.lora_B.{adapter}.weight"
        if second not in linears or not _is_plain(modules[place], adapter):
            raise ConfigError(f"{place}: its adapter is not plain LoRA on one linear layer; leave it out")
        scaling = float(modules[place].scaling[adapter])
        layers.append(LoraLayer(place, modules[place], (name, linear), (second, linears[second]), scaling))
    if 2 * len(layers) != len(linears):
        raise ConfigError("some LoRA matrices train and their counterparts don't: train both")
    return layers


def _is_plain(module: nn.Module, adapter: str) -> bool:
    """Whether the module is a linear layer with LoRA as the paper has it, not one of PEFT's variants."""
    variants = getattr(module, "lora_variant", {})
    linear = hasattr(module, "base_layer") and type(module).__name__ != "ParamWrapper"
    return linear and hasattr(module, "scaling") and adapter not in variants


def listed(names: set[str] | Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    shown = sorted(names)[:most]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")
