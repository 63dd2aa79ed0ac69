"""First-order influence of a draw of pool rows on a target, in every form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from gradsift.encoding import Batch
from gradsift.gradients import (
    REFERENCE_BETAS,
    REFERENCE_EPS,
    AdamForm,
    PerExampleGradients,
    ProjectionConfig,
    Projector,
    adam_feature,
    adam_terms,
    build_projector,
)
from gradsift.model import AdamSettings, Moments, alike_parts
from gradsift.store import BITS, quantized

FORMS: tuple[AdamForm, ...] = ("reference", "adamw", "sgd", "sign")
WITHOUT_MOMENTUM = "-without-momentum"
DIRECTIONS = (*FORMS, f"reference{WITHOUT_MOMENTUM}", f"adamw{WITHOUT_MOMENTUM}")
"""Γ in every form, and the two with moments without their shared term β1·m."""

Shapes = Mapping[str, tuple[int, ...]]


def flat_gradients(gradients: PerExampleGradients, batch: Batch) -> tuple[Tensor, Tensor]:
    """Whole gradients of the batch, float32 [B, P] in the model's order, and its losses [B]."""
    projector = build_projector(ProjectionConfig(kind="identity"), gradients.shapes)
    rows_BP = torch.zeros(len(batch.input_ids_BT), projector.dim, device=batch.input_ids_BT.device)
    losses_B = rows_BP.new_zeros(len(rows_BP))
    for rows, part in alike_parts(gradients.model, batch):
        losses_B[rows], rows_BP[rows] = _alike_gradients(gradients, part, projector)
    return rows_BP, losses_B


def _alike_gradients(gradients: PerExampleGradients, batch: Batch, projector: Projector) -> tuple[Tensor, Tensor]:
    rows_BP = torch.zeros(len(batch.input_ids_BT), projector.dim, device=batch.input_ids_BT.device)
    losses_B = gradients(batch, lambda name, block_BOI: projector.add(rows_BP, block_BOI, name))
    return losses_B, rows_BP


def direction(name: str, gradients_BP: Tensor, moments: Moments, adam: AdamSettings) -> Tensor:
    """One of `DIRECTIONS` of these gradients, float32 [B, P]; the moments are [P]."""
    form = cast(AdamForm, name.removesuffix(WITHOUT_MOMENTUM))
    if form in ("sgd", "sign"):
        return adam_feature(gradients_BP.clone(), form)
    terms = adam_terms(form, moments, adam)
    if name.endswith(WITHOUT_MOMENTUM):
        terms = replace(terms, first_OI=torch.zeros_like(terms.first_OI))
    return adam_feature(gradients_BP.clone(), form, terms=terms)


def projected(rows_BP: Tensor, projector: Projector | None, shapes: Shapes) -> Tensor:
    """Whole rows as the projector gives them, float32 [B, K]; as they are without one."""
    if projector is None:
        return rows_BP
    features_BK = torch.zeros(len(rows_BP), projector.dim, device=rows_BP.device)
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    for name, part_BD in zip(shapes, rows_BP.split(sizes, dim=1), strict=True):
        projector.add(features_BK, part_BD, name)
    return features_BK


def as_stored(features_BK: Tensor, dtype: str) -> Tensor:
    """Rows as they come back from a store of that quantised dtype, float32 [B, K]."""
    levels_BK, scales_B = quantized(features_BK, BITS[dtype])
    return levels_BK * scales_B[:, None]


def epsilon_shares(gradients_BP: Tensor, moments: Moments, adam: AdamSettings) -> dict[str, float]:
    """Share of coordinates, mean over the rows, in which ε outweighs the second moment after the row, by form.

    `reference`: β2 v + (1 - β2) g² < ε, both under the root. `adamw`: √v̂ < ε, ε outside it.
    """
    squares_BP = gradients_BP.square()
    beta2 = REFERENCE_BETAS[1]
    reference_BP = moments.second_OI * beta2 + squares_BP * (1 - beta2)
    beta2 = adam.betas[1]
    corrected_BP = (moments.second_OI * beta2 + squares_BP * (1 - beta2)) / (1 - beta2 ** (adam.step + 1))
    return {
        "reference": float((reference_BP < REFERENCE_EPS).float().mean()),
        "adamw": float((corrected_BP.sqrt() < adam.eps).float().mean()),
    }


class DirectionSums:
    """Sums of a target's gradients and unit gradients by subtask, of which its directions are made."""

    def __init__(self, num_subtasks: int) -> None:
        self._num_subtasks = num_subtasks
        self._sums: tuple[Tensor, Tensor] | None = None
        self._counts_G = torch.zeros(num_subtasks)

    def add(self, features_BK: Tensor, members: Sequence[int]) -> None:
        """Count these rows in, `members` the number of each one's subtask."""
        if self._sums is None:
            zeros_GK = features_BK.new_zeros(self._num_subtasks, features_BK.shape[1])
            self._sums = zeros_GK, zeros_GK.clone()
        index_B = torch.tensor(members)
        self._sums[0].index_add_(0, index_B.to(features_BK.device), features_BK)
        self._sums[1].index_add_(0, index_B.to(features_BK.device), unit_rows(features_BK))
        self._counts_G += torch.bincount(index_B, minlength=self._num_subtasks)

    def result(self) -> TargetDirections:
        """The means over each subtask."""
        assert self._sums is not None, "no row was added"
        counts_G1 = self._counts_G[:, None].to(self._sums[0].device)
        return TargetDirections(self._sums[0] / counts_G1, self._sums[1] / counts_G1)


@dataclass(frozen=True)
class TargetDirections:
    """What a draw's direction is multiplied with: a target's gradients by subtask, float32 [G, K] each."""

    mean_GK: Tensor
    """Mean gradients."""
    unit_GK: Tensor
    """Means of the unit gradients: a unit row's product with one is the mean of its cosines."""


@dataclass(frozen=True)
class Products:
    """Products of draws in one form and projection with a target's directions, on the CPU in float32."""

    dots_NG: Tensor
    """⟨Γ, mean gradient⟩."""
    cosines_NG: Tensor
    """Mean over the subtask's examples of cos(Γ, g)."""
    norms_N: Tensor
    """|Γ|."""

    def measure(self, how: str) -> Tensor:
        """`dot`, `mean_of_cosines` or `cosine_of_mean` [N, G]; the last up to a factor a subtask."""
        if how == "mean_of_cosines":
            return self.cosines_NG
        return self.dots_NG if how == "dot" else self.dots_NG.div(self.norms_N[:, None].clamp_min(1e-38))


MEASURES = ("dot", "mean_of_cosines", "cosine_of_mean")


def products(features_NK: Tensor, target: TargetDirections) -> Products:
    """The products of these rows with a target's directions."""
    norms_N = torch.linalg.vector_norm(features_NK, dim=1)
    dots_NG = features_NK @ target.mean_GK.T
    cosines_NG = unit_rows(features_NK) @ target.unit_GK.T
    return Products(dots_NG.cpu(), cosines_NG.cpu(), norms_N.cpu())


def unit_rows(rows_NK: Tensor) -> Tensor:
    """Rows of unit norm; a zero row stays zero."""
    norms_N1 = torch.linalg.vector_norm(rows_NK, dim=1, keepdim=True)
    return rows_NK.div(norms_N1.masked_fill(norms_N1 == 0, 1.0))


def mean_pairwise_cosine(unit_sum_P: Tensor, num_rows: int) -> float:
    """Mean cosine of two different rows, from the sum of their unit rows: (|Σu|² - N) / (N (N - 1))."""
    if num_rows < 2:
        return float("nan")
    return (float(unit_sum_P.double().square().sum()) - num_rows) / (num_rows * (num_rows - 1))
