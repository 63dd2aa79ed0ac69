"""The base model that comes with the package."""

from __future__ import annotations

import json

import pytest

from gradsift.demo.data import base_rows
from gradsift.demo.quality import MODEL, quality


def test_the_model_has_the_quality_in_its_log() -> None:
    told = json.loads((MODEL / "quality.json").read_text())
    found = quality(MODEL, base_rows(told["rows"], told["seed"]))
    assert set(found) == set(told["skills"])
    for skill, (loss, accuracy) in found.items():
        assert (loss, accuracy) == pytest.approx(told["skills"][skill], abs=0.01), skill


def test_the_model_is_small() -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 5_000_000
