"""Predicted influence: the features of the features stage, and sums against loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradsift.encoding.batching import pad_rows
from gradsift.encoding.encoder import EncodedRow
from gradsift.features.gradient_features import FeatureMaker
from gradsift.gradients.adam import adam_terms
from gradsift.gradients.per_example import PerExampleGradients
from gradsift.gradients.projection import ProjectionConfig, build_projector
from gradsift.influence_check.predictions import (
    DirectionSums,
    as_stored,
    direction,
    epsilon_shares,
    flat_gradients,
    mean_pairwise_cosine,
    products,
    projected,
    unit_rows,
)
from gradsift.model.moments import AdamSettings, Moments
from gradsift.selection.scoring import subtask_directions
from gradsift.store.quantization import BITS
from gradsift.store.writer import StoreWriter

MakeModel = Callable[..., nn.Module]
MakeRow = Callable[..., EncodedRow]

ADAM = AdamSettings(step=7, betas=(0.9, 0.999), eps=1e-8)


@pytest.mark.parametrize("dtype", BITS)
def test_rows_as_stored_are_those_of_a_store(tmp_path: Path, dtype: str) -> None:
    rows_NK = rows_of(5, 12)
    keys = [("pool", str(row)) for row in range(5)]
    writer = StoreWriter(tmp_path, {"dtype": dtype, "projection": {"dim": 12}}, keys, 5)
    writer.open()
    writer.write(0, rows_NK)
    store = writer.finish()
    (shard,) = store.shards()
    assert torch.equal(as_stored(rows_NK, dtype), store.features(shard))


def rows_of(num_rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["sketch", "rademacher"])
@pytest.mark.parametrize("form", ["reference", "adamw", "sgd", "sign"])
def test_projected_directions_are_the_features_of_the_features_stage(
    kind: str, form: str, make_lora_model: MakeModel, make_row: MakeRow
) -> None:
    gradients = PerExampleGradients(make_lora_model())
    batch = pad_rows([make_row(9, 1), make_row(14, 2)])
    pairs = {
        name: Moments(torch.full(shape, 0.01), torch.full(shape, 1e-4)) for name, shape in gradients.shapes.items()
    }
    size = sum(pair.first_OI.numel() for pair in pairs.values())
    moments = Moments(torch.full((size,), 0.01), torch.full((size,), 1e-4))
    terms = {name: adam_terms(form, pairs[name], ADAM) for name in pairs} if form in ("reference", "adamw") else {}  # type: ignore[arg-type]
    projector = build_projector(ProjectionConfig(kind=kind, dim=32), gradients.shapes)  # type: ignore[arg-type]
    expected_BK = FeatureMaker(gradients, form, terms, projector)(batch)  # type: ignore[arg-type]

    rows_BP = direction(form, flat_gradients(gradients, batch)[0], moments, ADAM)
    found_BK = projected(rows_BP, projector, gradients.shapes)

    assert torch.allclose(found_BK, expected_BK, rtol=1e-4, atol=1e-5 * float(expected_BK.abs().max()))


def test_without_momentum_the_first_moment_is_left_out() -> None:
    moments = Moments(torch.tensor([5.0, -5.0]), torch.tensor([1.0, 1.0]))

    found_BP = direction("reference-without-momentum", torch.tensor([[1.0, 2.0]]), moments, ADAM)

    expected = [0.1 * g / math.sqrt(0.999 + 0.001 * g * g + 1e-8) for g in (1.0, 2.0)]
    assert found_BP[0].tolist() == pytest.approx(expected)


def test_share_of_coordinates_that_epsilon_rules() -> None:
    # After a zero gradient at step 999, 0.999 v is 5e-9 and 2e-8, 5e-17 and 2e-16 · 0.632 of the bias correction.
    moments = Moments(torch.zeros(4), torch.tensor([5e-9, 2e-8, 3e-17, 2e-16]) / 0.999)
    adam = AdamSettings(step=999, betas=(0.9, 0.999), eps=1e-8)

    shares = epsilon_shares(torch.zeros(1, 4), moments, adam)

    assert shares == {"reference": 0.75, "adamw": 0.25}


def test_an_examples_own_square_counts_against_epsilon() -> None:
    moments = Moments(torch.zeros(2), torch.zeros(2))

    shares = epsilon_shares(torch.tensor([[1e-2, 1e-3]]), moments, AdamSettings(0, (0.9, 0.999), 1e-8))

    assert shares == {"reference": 0.5, "adamw": 0.0}


def test_mean_pairwise_cosine_equals_a_loop_over_pairs() -> None:
    rows_NP = rows_of(7, 5)
    pairs = [
        float(torch.nn.functional.cosine_similarity(rows_NP[left], rows_NP[right], dim=0))
        for left in range(7)
        for right in range(left)
    ]

    found = mean_pairwise_cosine(unit_rows(rows_NP).sum(dim=0), 7)

    assert found == pytest.approx(float(np.mean(pairs)), abs=1e-6)


def test_one_row_has_no_pairwise_cosine() -> None:
    assert math.isnan(mean_pairwise_cosine(torch.ones(3), 1))


def test_target_directions_equal_those_of_scoring() -> None:
    features_VK, members = rows_of(5, 8), [0, 1, 1, 0, 1]
    norms_V = torch.linalg.vector_norm(features_VK, dim=1)
    sums = DirectionSums(2)
    sums.add(features_VK[:2], members[:2])
    sums.add(features_VK[2:], members[2:])

    found = sums.result()

    names = [str(member) for member in members]
    expected_GK = subtask_directions(features_VK, norms_V, names, ["0", "1"], "mean_of_cosines")
    assert torch.allclose(found.unit_GK, expected_GK, atol=1e-6)
    expected_GK = subtask_directions(features_VK, norms_V, names, ["0", "1"], "cosine_of_mean")
    assert torch.allclose(unit_rows(found.mean_GK), expected_GK, atol=1e-6)


def test_products_equal_a_loop() -> None:
    features_NK, target_VK = rows_of(3, 8), rows_of(4, 8, seed=1)
    sums = DirectionSums(1)
    sums.add(target_VK, [0] * 4)

    found = products(features_NK, sums.result())

    for row, feature_K in enumerate(features_NK):
        dots = [float(feature_K @ target_K) for target_K in target_VK]
        cosines = [float(torch.nn.functional.cosine_similarity(feature_K, target_K, dim=0)) for target_K in target_VK]
        assert float(found.dots_NG[row]) == pytest.approx(np.mean(dots), abs=1e-5)
        assert float(found.cosines_NG[row]) == pytest.approx(np.mean(cosines), abs=1e-5)
