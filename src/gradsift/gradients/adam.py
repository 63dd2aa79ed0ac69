"""Γ: the direction in which the optimizer would step on an example's gradient, in four forms (METHOD section 2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from gradsift.model import AdamSettings, Moments

AdamForm = Literal["reference", "adamw", "sgd", "sign"]

REFERENCE_BETAS = (0.9, 0.999)
REFERENCE_EPS = 1e-8


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
