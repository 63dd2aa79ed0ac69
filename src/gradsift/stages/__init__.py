"""The stages: each turns a config and the folders before it into the next folder of the run."""

from __future__ import annotations

from gradsift.stages.baseline import BaselineStage, score_by_number
from gradsift.stages.candidates import candidates_for, say_what_is_kept
from gradsift.stages.embed import EmbeddingStage
from gradsift.stages.encode import EncodeStage
from gradsift.stages.evaluate import BASE, EvaluateStage
from gradsift.stages.features import FeaturesStage
from gradsift.stages.score import score_by_influence
from gradsift.stages.select import SelectStage, read_selection
from gradsift.stages.tov import TovConfig, TovStage
from gradsift.stages.train import TrainConfig, TrainStage
from gradsift.stages.warmup import WarmupConfig, run_warmup, saved_checkpoints, warmup_rows
from gradsift.stages.warmup_files import finished_warmup, require_same_base

__all__ = [
    "BASE",
    "BaselineStage",
    "EmbeddingStage",
    "EncodeStage",
    "EvaluateStage",
    "FeaturesStage",
    "SelectStage",
    "TovConfig",
    "TovStage",
    "TrainConfig",
    "TrainStage",
    "WarmupConfig",
    "candidates_for",
    "finished_warmup",
    "read_selection",
    "require_same_base",
    "run_warmup",
    "saved_checkpoints",
    "say_what_is_kept",
    "score_by_influence",
    "score_by_number",
    "warmup_rows",
]
