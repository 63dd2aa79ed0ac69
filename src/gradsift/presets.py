"""Presets: a name for the settings that a run has where its config leaves keys out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

PresetName = Literal["gradsift", "paper"]

PAPER: dict[str, Any] = {
    "encoding": {"max_length": 2048, "supervise": "all"},
    "warmup": {
        "fraction": 0.05,
        "epochs": 4,
        "learning_rate": 2.0e-5,
        "batch_size": 128,
        "lr_scheduler_type": "linear",
        "warmup_ratio": 0.03,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "lora": {"r": 128, "alpha": 512, "dropout": 0.1, "target_modules": "auto"},
    },
    "features": {
        "projection": {"kind": "sketch", "dim": 8192, "seed": 0},
        "adam": "reference",
        "store_dtype": "float16",
        "representation_dtype": None,
        "candidates": None,
    },
    "score": {"subtasks": "mean_of_cosines", "combine": "max", "normalize": "none"},
    "select": {"less_strategy": "top", "random_share": 0.0},
    "check": {"sketch_dims": (512, 2048, 8192, 32768)},
}
"""LESS as in its paper and the authors' code (arXiv 2402.04333), but for the sketch, whose inner products have the
variance of their dense projection's. `train` follows the warmup, as ever; the influence check looks around 8192."""

PRESETS: Mapping[str, Mapping[str, Any]] = {"gradsift": {}, "paper": PAPER}
"""What each preset has in the place of our defaults, which stand in the config classes."""

DEFAULT_PRESET: PresetName = "gradsift"
PRESET_OF_BEFORE: PresetName = "paper"
"""Run folders that name no preset were begun before there were any, when the defaults were the paper's."""


def filled(values: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """The values, and the preset's for the keys that they leave out, section by section."""
    result = dict(values)
    for key, value in preset.items():
        if not isinstance(value, Mapping):
            result.setdefault(key, value)
        elif isinstance(given := values.get(key, {}), Mapping):
            result[key] = filled(given, value)
    return result
