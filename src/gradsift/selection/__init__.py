"""From features to chosen rows: influence scores, strategies, budgets, and the arms of a comparison."""

from __future__ import annotations

from gradsift.selection.arms import ArmConfig, CompareConfig
from gradsift.selection.fusion import fused
from gradsift.selection.products import build_products
from gradsift.selection.scoring import (
    Influence,
    ScoreConfig,
    checkpoint_weights,
    combined,
    on_one_scale,
    scored_subtasks,
    subtask_directions,
    usable_members,
    usable_rows,
)
from gradsift.selection.selecting import (
    Chosen,
    ScoredRows,
    SelectConfig,
    choose,
    drawn,
    ranking,
    wanted_count,
    with_gumbel_noise,
)
from gradsift.selection.strategies import STRATEGIES, Candidates

__all__ = [
    "STRATEGIES",
    "ArmConfig",
    "Candidates",
    "Chosen",
    "CompareConfig",
    "Influence",
    "ScoreConfig",
    "ScoredRows",
    "SelectConfig",
    "build_products",
    "checkpoint_weights",
    "choose",
    "combined",
    "drawn",
    "fused",
    "on_one_scale",
    "ranking",
    "scored_subtasks",
    "subtask_directions",
    "usable_members",
    "usable_rows",
    "wanted_count",
    "with_gumbel_noise",
]
