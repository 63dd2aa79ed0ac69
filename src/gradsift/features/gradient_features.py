"""Features of a batch: its gradients as directions of the optimizer, projected, one matrix at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gradsift.encoding import Batch
from gradsift.gradients import AdamForm, AdamTerms, PerExampleGradients, Projector, adam_feature
from gradsift.model import alike_parts

PIECE_FLOATS = 1 << 20
"""Numbers of a block that go through Γ and the projector together on a CPU: 4 MB, near what its caches hold."""


@dataclass(frozen=True)
class FeatureMaker:
    """What turns a batch into features: a model at a checkpoint, a form of Γ, a projector."""

    gradients: PerExampleGradients
    form: AdamForm
    terms: Mapping[str, AdamTerms]
    """By parameter; empty for the forms that need none."""
    projector: Projector

    def __call__(self, batch: Batch) -> Tensor:
        """Features of the batch, float32 [B, K]."""
        parts = alike_parts(self.gradients.model, batch)
        if len(parts) == 1:  # a part has its rows in the batch's order
            return self._of_alike_rows(parts[0][1])
        features_BK = torch.empty(len(batch.input_ids_BT), self.projector.dim, device=batch.input_ids_BT.device)
        for rows, part in parts:
            features_BK[rows] = self._of_alike_rows(part)
        return features_BK

    def _of_alike_rows(self, batch: Batch) -> Tensor:
        features_BK = torch.zeros(len(batch.input_ids_BT), self.projector.dim, device=batch.input_ids_BT.device)

        def consume(name: str, gradients_BOI: Tensor) -> None:
            self._add(features_BK, gradients_BOI.flatten(1), name)

        self.gradients(batch, consume)
        return features_BK

    def _add(self, features_BK: Tensor, gradients_BD: Tensor, name: str) -> None:
        """Add a matrix's part to the features, piece by piece; the gradients are overwritten."""
        num_rows, size = gradients_BD.shape
        step = size if gradients_BD.is_cuda else max(1, PIECE_FLOATS // num_rows)
        for start in range(0, size, step):
            piece_BD = gradients_BD[:, start : start + step]
            terms = self.terms[name].part(start, start + piece_BD.shape[1]) if self.terms else None
            self.projector.add(features_BK, adam_feature(piece_BD, self.form, terms=terms), name, start)
