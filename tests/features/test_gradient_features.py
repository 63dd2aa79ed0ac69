"""Features of a batch: Γ and projection in pieces equal those of whole blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradsift.encoding.batching import pad_rows
from gradsift.features import gradient_features
from gradsift.features.gradient_features import FeatureMaker
from gradsift.gradients.adam import adam_feature, adam_terms
from gradsift.gradients.per_example import PerExampleGradients
from gradsift.gradients.projection import PROJECTORS, ProjectionConfig, build_projector
from gradsift.model.moments import AdamSettings, Moments

MakeModel = Callable[..., nn.Module]
MakeRow = Callable[..., Any]
ADAM = AdamSettings(7, (0.8, 0.95), 1e-3)


def random_moments(shapes: dict[str, tuple[int, ...]]) -> dict[str, Moments]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: Moments(torch.randn(shape, generator=generator), torch.rand(shape, generator=generator))
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize("piece_floats", [1, 200, 1 << 20], ids=["least", "some", "whole"])
@pytest.mark.parametrize("kind", PROJECTORS)
@pytest.mark.parametrize("form", ["reference", "adamw", "sgd", "sign"])
def test_features_equal_the_projection_of_whole_directions(
    form: Any,
    kind: Any,
    piece_floats: int,
    make_lora_model: MakeModel,
    make_row: MakeRow,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gradients, batch = PerExampleGradients(make_lora_model()), pad_rows([make_row(12, 1), make_row(7, 2)])
    projector = build_projector(ProjectionConfig(kind=kind, dim=48), gradients.shapes)
    moments = random_moments(gradients.shapes)
    expected = torch.zeros(2, projector.dim)

    def add_whole(name: str, block_BOI: Tensor) -> None:
        projector.add(expected, adam_feature(block_BOI, form, moments[name], ADAM), name)

    gradients(batch, add_whole)
    monkeypatch.setattr(gradient_features, "PIECE_FLOATS", piece_floats)
    needs_terms = form in ("reference", "adamw")
    terms = {name: adam_terms(form, pair, ADAM) for name, pair in moments.items()} if needs_terms else {}

    found = FeatureMaker(gradients, form, terms, projector)(batch)

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
