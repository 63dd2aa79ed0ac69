"""Makers of features: what one process loads to turn batches into rows of a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from gradsift.baselines import REPRESENTATIONS, Base
from gradsift.encoding import Batch, EncodedRow
from gradsift.features.gradient_features import FeatureMaker
from gradsift.features.origins import Origin, TunedOrigin
from gradsift.gradients import (
    AdamForm,
    AdamTerms,
    PerExampleGradients,
    ProjectionConfig,
    Projector,
    adam_terms,
    build_projector,
    probe_gradients,
)
from gradsift.model import (
    Checkpoint,
    ModelConfig,
    alike_parts,
    find_shortcuts,
    load_adapter,
    load_finetuned,
    lora_at,
    read_moments,
)


class Maker(Protocol):
    """Makes features of a batch."""

    def __call__(self, batch: Batch) -> Tensor:
        """Float32 [B, K]."""
        ...


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model with hooks that stands at a checkpoint, and what Γ takes from that checkpoint, on its device."""

    checkpoint: Checkpoint
    gradients: PerExampleGradients
    terms: dict[str, AdamTerms]
    projector: Projector


@dataclass(frozen=True)
class RepresentationMaker:
    """What turns a batch into a representation of that kind."""

    kind: str
    base: Base

    def __call__(self, batch: Batch) -> Tensor:
        """Float32 [B, K]."""
        with torch.no_grad():
            parts = alike_parts(self.base.model, batch)
            features = [REPRESENTATIONS[self.kind].represent(self.base, part) for _, part in parts]
        order = torch.tensor([row for rows, _ in parts for row in rows], device=features[0].device).argsort()
        return torch.cat(features)[order]


@dataclass
class Makers:
    """One process's model; it is changed only when the origin changes."""

    model: ModelConfig
    projection: ProjectionConfig
    adam: AdamForm
    device: torch.device
    _checkpoint: LoadedCheckpoint | None = field(default=None, init=False)
    _base: Base | None = field(default=None, init=False)
    _adapter: Path | None = field(default=None, init=False)
    """The base's, where it is one that was trained on a target."""
    _is_probed: bool = field(default=False, init=False)

    def maker(self, origin: Origin, form: AdamForm) -> Maker:
        """What makes a store's features; `form` is of a checkpoint's gradients alone."""
        if isinstance(origin, Checkpoint):
            return self._gradients(self._at(origin), form)
        if isinstance(origin, TunedOrigin):
            return RepresentationMaker("loss", self._base_with(origin.adapter))
        return RepresentationMaker(origin.name, self._base_with(None))

    def probe_once(self, rows: Sequence[EncodedRow]) -> None:
        """Raise ConfigError where the loaded adapter's gradients can't be had: before the first shard is made."""
        if self._checkpoint is not None and not self._is_probed:
            probe_gradients(self._checkpoint.gradients, rows)
            self._is_probed = True

    def _base_with(self, adapter: Path | None) -> Base:
        if self._base is None or self._adapter != adapter:
            self._base = None  # never two models at once
            model = load_finetuned(self.model, adapter, self.device)
            self._base, self._adapter = Base(model, find_shortcuts(model)), adapter
        return self._base

    def _gradients(self, loaded: LoadedCheckpoint, form: AdamForm) -> Maker:
        terms = loaded.terms if form == self.adam else {}
        return FeatureMaker(loaded.gradients, form, terms, loaded.projector)

    def _at(self, checkpoint: Checkpoint) -> LoadedCheckpoint:
        """The model with that checkpoint's adapter; the base is loaded once for adapters of the same config."""
        if self._checkpoint is not None and self._checkpoint.checkpoint == checkpoint:
            return self._checkpoint
        gradients, projector = self._gradients_at(checkpoint)
        terms = self._terms(checkpoint, gradients.shapes)
        self._checkpoint = LoadedCheckpoint(checkpoint, gradients, terms, projector)
        return self._checkpoint

    def _gradients_at(self, checkpoint: Checkpoint) -> tuple[PerExampleGradients, Projector]:
        """The model with hooks, and the projector of its matrices, which remembers its random choices."""
        before, self._checkpoint = self._checkpoint, None  # never two models at once, nor two checkpoints' moments
        if before is not None and before.checkpoint.adapter == checkpoint.adapter:
            before.terms.clear()
            load_adapter(before.gradients.model, checkpoint, before.gradients.shapes)
            return before.gradients, before.projector
        del before
        self._is_probed = False
        gradients = PerExampleGradients(lora_at(self.model, checkpoint, self.device))
        return gradients, build_projector(self.projection, gradients.shapes)

    def _terms(self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, AdamTerms]:
        if self.adam not in ("reference", "adamw"):
            return {}
        moments, adam = read_moments(checkpoint, shapes)
        return {name: adam_terms(self.adam, moments.pop(name).to(self.device), adam) for name in shapes}
