"""Gradients of every example, Γ, the optimizer's step on each, and its projection to K numbers."""

from __future__ import annotations

from gradsift.gradients.adam import REFERENCE_BETAS, REFERENCE_EPS, AdamForm, AdamTerms, adam_feature, adam_terms
from gradsift.gradients.per_example import PerExampleGradients
from gradsift.gradients.probe import UncoveredLayers, probe, probe_gradients
from gradsift.gradients.projection import PROJECTION_VERSION, PROJECTORS, ProjectionConfig, Projector, build_projector

__all__ = [
    "PROJECTION_VERSION",
    "PROJECTORS",
    "REFERENCE_BETAS",
    "REFERENCE_EPS",
    "AdamForm",
    "AdamTerms",
    "PerExampleGradients",
    "ProjectionConfig",
    "Projector",
    "UncoveredLayers",
    "adam_feature",
    "adam_terms",
    "build_projector",
    "probe",
    "probe_gradients",
]
