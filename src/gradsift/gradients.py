"""Gradients of every example of a batch, one LoRA matrix at a time, and the Adam-aware directions made of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradsift.batching import Batch
from gradsift.checkpoints import AdamSettings, Moments
from gradsift.encoding import IGNORED
from gradsift.errors import ConfigError

AdamForm = Literal["reference", "adamw", "sgd", "sign"]

REFERENCE_BETAS = (0.9, 0.999)
REFERENCE_EPS = 1e-8


def example_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy over the supervised tokens of each example, in nats: float32 [B].

    Logits are computed only where the next token is supervised: the output embedding sees those positions alone,
    whatever the model does with logits afterwards. A row without a supervised token is our own mistake.
    """
    targets_BT = functional.pad(batch.labels_BT[:, 1:], (0, 1), value=IGNORED)
    supervised_BT = targets_BT != IGNORED
    num_tokens_B = supervised_BT.sum(dim=1)
    assert bool((num_tokens_B > 0).all()), "a row without a supervised token reached the model"
    with only_positions(model, supervised_BT):
        output = model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False)
    logits_SV = output.logits.squeeze(0)
    losses_S = functional.cross_entropy(logits_SV.float(), targets_BT[supervised_BT], reduction="none")
    rows_S = supervised_BT.nonzero()[:, 0]
    sums_B = torch.zeros(len(num_tokens_B), device=losses_S.device).index_add(0, rows_S, losses_S)
    return sums_B / num_tokens_B


@contextlib.contextmanager
def only_positions(model: nn.Module, mask_BT: Tensor) -> Iterator[None]:
    """Let the output embedding see the hidden states at `mask_BT` only, as one sequence [1, S, H]."""

    def keep(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_BTH, *rest = args
        return (hidden_BTH[mask_BT].unsqueeze(0), *rest)

    head = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise ConfigError(f"{type(model).__name__} has no output embedding: not a causal language model")
    handle = head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


class PerExampleGradients:
    """Hooks on every LoRA linear of a model that hand out per-example gradients, [B, O, I] float32 a matrix.

    No parameter asks autograd for its gradient: the forward hook keeps a linear's input, and the gradient of its
    output gives one batched product gᵀx. Parameters that are trainable but not the weight of a plain LoRA linear
    are refused by name. The model is put in evaluation mode (no dropout) and its parameters are frozen.
    """

    def __init__(self, model: nn.Module) -> None:
        linears = lora_linears(model)
        self.shapes = {name: tuple(linear.weight.shape) for name, linear in linears.items()}
        self._model = model.eval().requires_grad_(False)
        self._inputs: dict[str, Tensor] = {}
        self._consume: Callable[[str, Tensor], None] | None = None
        self._batch_shape = torch.Size()
        for name, linear in linears.items():
            linear.register_forward_hook(partial(self._keep_input, name))

    def __call__(self, batch: Batch, consume: Callable[[str, Tensor], None]) -> Tensor:
        """The losses [B]; `consume(parameter, gradients_BOI)` is called once a matrix and owns the block."""
        self._inputs, self._batch_shape, self._consume = {}, batch.input_ids_BT.shape, consume
        pending = set(self.shapes)

        def consume_once(name: str, block_BOI: Tensor) -> None:
            pending.discard(name)
            consume(name, block_BOI)

        self._consume = consume_once
        try:
            losses_B = example_losses(self._model, batch)
            losses_B.sum().backward()
        finally:
            self._inputs, self._consume = {}, None
        if pending:
            raise ConfigError(f"LoRA parameters that take no part in the loss: {_listed(pending)}")
        return losses_B.detach()

    def _keep_input(self, name: str, _: nn.Module, args: tuple[Tensor, ...], output_BTO: Tensor) -> None:
        if self._consume is None:
            return
        x_BTI = args[0].detach()
        if x_BTI.shape[:-1] != self._batch_shape:
            raise ConfigError(
                f"{name} sees an input of shape {tuple(x_BTI.shape)}, not [batch, tokens, features]: per-example "
                "gradients of such a layer (a mixture of experts?) are not supported; take it out of target_modules"
            )
        if name in self._inputs:
            raise ConfigError(f"{name} is used twice in one forward pass: take it out of target_modules")
        self._inputs[name] = x_BTI
        if not output_BTO.requires_grad:
            output_BTO.requires_grad_(True)
        output_BTO.register_hook(partial(self._form_block, name))

    def _form_block(self, name: str, gradient_BTO: Tensor) -> None:
        assert self._consume is not None
        x_BTI = self._inputs[name]
        self._inputs[name] = x_BTI.new_empty(0)
        self._consume(name, torch.bmm(gradient_BTO.float().transpose(1, 2), x_BTI.float()))


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
            f"trainable parameters that per-example gradients don't cover: {_listed(refused)}; "
            "use plain LoRA on linear layers (no biases, embeddings, DoRA or modules_to_save)"
        )
    if not found:
        raise ConfigError("the model has no LoRA parameter: check target_modules")
    return found


def _listed(names: set[str] | list[str], most: int = 5) -> str:
    shown = sorted(names)[:most]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def adam_feature(gradients_BOI: Tensor, form: AdamForm, moments: Moments | None, adam: AdamSettings | None) -> Tensor:
    """Γ of METHOD section 2, float32 [B, O, I]; the input block is overwritten.

    `reference` is the authors' code: m' / √(v' + ε) with β = (0.9, 0.999), ε = 1e-8, no bias correction.
    `adamw` is the step that torch.optim.AdamW would take on that example alone, without weight decay.
    `sgd` is the gradient, `sign` its sign. Only the first two need moments and settings.
    """
    if form == "sgd":
        return gradients_BOI
    if form == "sign":
        return gradients_BOI.sign_()
    assert moments is not None and adam is not None, f"the form {form} needs the moments of a checkpoint"
    if form == "reference":
        first_BOI, second_BOI = _updated_moments(gradients_BOI, moments, REFERENCE_BETAS)
        return first_BOI.div_(second_BOI.add_(REFERENCE_EPS).sqrt_())
    first_BOI, second_BOI = _updated_moments(gradients_BOI, moments, adam.betas)
    step = adam.step + 1
    first_correction, second_correction = (1 - beta**step for beta in adam.betas)
    first_BOI.div_(first_correction)
    return first_BOI.div_(second_BOI.div_(second_correction).sqrt_().add_(adam.eps))


def _updated_moments(gradients_BOI: Tensor, moments: Moments, betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """m' and v' of each example: β m + (1 - β) g in place of g, and a new block for the second moment."""
    beta1, beta2 = betas
    second_BOI = torch.square(gradients_BOI).mul_(1 - beta2).add_(moments.second_OI, alpha=beta2)
    first_BOI = gradients_BOI.mul_(1 - beta1).add_(moments.first_OI, alpha=beta1)
    return first_BOI, second_BOI
