"""Real optimizer steps: those of torch, and the way back bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradsift.encoding.batching import pad_rows
from gradsift.encoding.encoder import EncodedRow
from gradsift.gradients.per_example import PerExampleGradients
from gradsift.influence_check.agreement import pearson
from gradsift.influence_check.predictions import DirectionSums, direction, flat_gradients, products
from gradsift.influence_check.steps import AdamSteps, StepSettings
from gradsift.model.losses import example_losses
from gradsift.model.moments import AdamSettings, Moments

MakeModel = Callable[..., nn.Module]
MakeRow = Callable[..., EncodedRow]

ADAM = AdamSettings(step=7, betas=(0.9, 0.999), eps=1e-8)


def random_moments(gradients: PerExampleGradients) -> dict[str, Moments]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: Moments(
            torch.randn(shape, generator=generator) * 1e-2, torch.rand(shape, generator=generator) * 1e-3 + 1e-5
        )
        for name, shape in gradients.shapes.items()
    }


def steps_of(gradients: PerExampleGradients, learning_rate: float = 1e-5, max_grad_norm: float = 1e9) -> AdamSteps:
    parameters = dict(gradients.model.named_parameters())
    return AdamSteps(
        {name: parameters[name] for name in gradients.shapes},
        random_moments(gradients),
        ADAM,
        StepSettings(learning_rate, max_grad_norm),
    )


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_undo_leaves_the_weights_bitwise_the_same(make_lora_model: MakeModel, make_row: MakeRow) -> None:
    gradients = PerExampleGradients(make_lora_model())
    before = weights_of(gradients.model)
    steps = steps_of(gradients, learning_rate=1e-2)
    for seed in range(2):
        steps.take(flat_gradients(gradients, pad_rows([make_row(9, seed)]))[0][0])

    steps.undo()

    assert all(torch.equal(parameter, before[name]) for name, parameter in gradients.model.named_parameters())


def test_undo_restores_moments_and_step_count(make_lora_model: MakeModel, make_row: MakeRow) -> None:
    gradients = PerExampleGradients(make_lora_model())
    steps = steps_of(gradients)
    moments = steps.moments
    steps.take(flat_gradients(gradients, pad_rows([make_row(9, 0)]))[0][0])
    assert steps.adam.step == ADAM.step + 1

    steps.undo()

    assert steps.adam == ADAM
    assert torch.equal(steps.moments.first_OI, moments.first_OI)
    assert torch.equal(steps.moments.second_OI, moments.second_OI)


def test_a_step_goes_where_the_adamw_form_says(make_lora_model: MakeModel, make_row: MakeRow) -> None:
    gradients = PerExampleGradients(make_lora_model())
    steps = steps_of(gradients, learning_rate=1e-2)
    gradients_BP, _ = flat_gradients(gradients, pad_rows([make_row(9, 0)]))
    expected_BP = direction("adamw", gradients_BP, steps.moments, steps.adam)

    gone_P, clipped = steps.take(gradients_BP[0])

    assert not clipped
    assert float((gone_P - expected_BP[0]).norm() / expected_BP.norm()) < 1e-4


def test_a_long_gradient_is_clipped_as_in_training(make_lora_model: MakeModel, make_row: MakeRow) -> None:
    gradients = PerExampleGradients(make_lora_model())
    gradients_BP, _ = flat_gradients(gradients, pad_rows([make_row(9, 0)]))
    steps = steps_of(gradients, learning_rate=1e-2, max_grad_norm=float(gradients_BP.norm()) / 4)
    expected_BP = direction("adamw", gradients_BP / 4, steps.moments, steps.adam)

    gone_P, clipped = steps.take(gradients_BP[0])

    assert clipped
    assert float((gone_P - expected_BP[0]).norm() / expected_BP.norm()) < 1e-4


@pytest.mark.parametrize("size", [1, 3])
def test_influence_in_the_adamw_form_foretells_the_loss_drop_of_small_steps(
    size: int, make_lora_model: MakeModel, make_row: MakeRow
) -> None:
    gradients = PerExampleGradients(make_lora_model())
    steps = steps_of(gradients, learning_rate=1e-4)
    targets = [make_row(12, 100 + seed) for seed in range(3)]
    sums = DirectionSums(1)
    sums.add(flat_gradients(gradients, pad_rows(targets))[0], [0, 0, 0])
    target = sums.result()

    def loss() -> float:
        with torch.no_grad():
            return float(example_losses(gradients.model, pad_rows(targets)).double().mean())

    before, predicted, real = loss(), [], []
    for draw in range(12):
        rows = [make_row(6 + seed, 10 * draw + seed) for seed in range(size)]
        gradients_BP, _ = flat_gradients(gradients, pad_rows(rows))
        mean_1P = gradients_BP.mean(dim=0, keepdim=True)
        found: Any = products(direction("adamw", mean_1P, steps.moments, steps.adam), target)
        predicted.append(float(found.dots_NG))
        steps.take(mean_1P[0])
        real.append(before - loss())
        steps.undo()

    assert pearson(torch.tensor(predicted).numpy(), torch.tensor(real).numpy()) > 0.99
    assert real == pytest.approx([1e-4 * value for value in predicted], abs=0.05 * max(map(abs, real)))
