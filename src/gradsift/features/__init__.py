"""Features made: what they are made with, what they mean, and the worker that fills a store's shards."""

from __future__ import annotations

from gradsift.features.gradient_features import FeatureMaker
from gradsift.features.meaning import origin_meaning, rows_meaning, unprojected
from gradsift.features.origins import Origin, SoleOrigin, TunedOrigin
from gradsift.features.settings import CandidatesConfig, FeaturesConfig, gives_dim_or_kind
from gradsift.features.work import StoreTask, Unit, say_if_coarse, store_writer
from gradsift.features.worker import FeatureWorker

__all__ = [
    "CandidatesConfig",
    "FeatureMaker",
    "FeatureWorker",
    "FeaturesConfig",
    "Origin",
    "SoleOrigin",
    "StoreTask",
    "TunedOrigin",
    "Unit",
    "gives_dim_or_kind",
    "origin_meaning",
    "rows_meaning",
    "say_if_coarse",
    "store_writer",
    "unprojected",
]
