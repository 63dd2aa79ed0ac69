"""Γ in its four forms, against formulas and torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradsift.gradients.adam import adam_feature
from gradsift.model.moments import AdamSettings, Moments


def random_state(shape: tuple[int, int] = (3, 5), num_rows: int = 4) -> tuple[Tensor, Moments, AdamSettings]:
    """Gradients [B, O, I], moments and settings of unusual betas and epsilon."""
    generator = torch.Generator().manual_seed(0)
    gradients_BOI = torch.randn(num_rows, *shape, generator=generator)
    first_OI = torch.randn(*shape, generator=generator) * 0.1
    second_OI = torch.rand(*shape, generator=generator) * 1e-3
    return gradients_BOI, Moments(first_OI, second_OI), AdamSettings(7, (0.8, 0.95), 1e-3)


def test_reference_form_is_the_authors_formula() -> None:
    g, moments, adam = random_state()
    m, v = 0.9 * moments.first_OI + 0.1 * g, 0.999 * moments.second_OI + 0.001 * g**2

    features_BOI = adam_feature(g.clone(), "reference", moments, adam)

    torch.testing.assert_close(features_BOI, m / torch.sqrt(v + 1e-8))


def test_adamw_form_is_the_formula_with_the_settings_of_the_checkpoint() -> None:
    g, moments, adam = random_state()
    m, v = 0.8 * moments.first_OI + 0.2 * g, 0.95 * moments.second_OI + 0.05 * g**2
    expected = (m / (1 - 0.8**8)) / (torch.sqrt(v / (1 - 0.95**8)) + 1e-3)

    features_BOI = adam_feature(g.clone(), "adamw", moments, adam)

    torch.testing.assert_close(features_BOI, expected)


def test_adamw_form_is_the_step_of_torch_on_each_example_alone() -> None:
    g, moments, adam = random_state()
    changes = []
    for gradient_OI in g:
        parameter = nn.Parameter(torch.zeros(3, 5))
        optimizer = torch.optim.AdamW([parameter], lr=1.0, betas=adam.betas, eps=adam.eps, weight_decay=0.0)
        state = {"step": torch.tensor(7.0), "exp_avg": moments.first_OI, "exp_avg_sq": moments.second_OI}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": {0: copy.deepcopy(state)}})
        parameter.grad = gradient_OI.clone()
        optimizer.step()
        changes.append(parameter.detach())

    features_BOI = adam_feature(g.clone(), "adamw", moments, adam)

    torch.testing.assert_close(features_BOI, -torch.stack(changes), rtol=1e-5, atol=1e-6)


def test_sgd_form_is_the_gradient() -> None:
    g, _, _ = random_state()

    assert torch.equal(adam_feature(g.clone(), "sgd", None, None), g)


def test_sign_form_is_the_sign_of_the_gradient() -> None:
    g, _, _ = random_state()
    g[0, 0, 0] = 0.0

    assert torch.equal(adam_feature(g.clone(), "sign", None, None), torch.sign(g))


@pytest.mark.parametrize("form", ["reference", "adamw"])
def test_moments_stay_as_they_were(form: Any) -> None:
    g, moments, adam = random_state()
    before = copy.deepcopy(moments)

    adam_feature(g, form, moments, adam)

    assert torch.equal(moments.first_OI, before.first_OI)
    assert torch.equal(moments.second_OI, before.second_OI)


@pytest.mark.parametrize("form", ["reference", "adamw", "sign"])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e15, 1e25], ids=["zero", "tiny", "huge", "square overflows"])
def test_features_of_extreme_gradients_are_finite(form: Any, scale: float) -> None:
    g, _, adam = random_state()
    moments = Moments(torch.zeros(3, 5), torch.zeros(3, 5))

    assert bool(adam_feature(g * scale, form, moments, adam).isfinite().all())
