"""The worker of the features stage where memory runs out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import gradsift, largest_relative_error, stored_features, tiny_run

from gradsift.features.gradient_features import FeatureMaker


def test_features_are_the_same_after_memory_ran_out(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert gradsift("run", config, "--until", "warmup") == 0
    checkpoints = [str(path) for path in sorted((tmp_path / "run" / "warmup").glob("checkpoint-*"))]
    assert gradsift("run", config, "--until", "features") == 0
    name = Path(checkpoints[-1]).name
    expected = stored_features(tmp_path / "run" / "features" / "pool" / name)
    scarce = tmp_path / "scarce"
    scarce.mkdir()
    make = FeatureMaker.__call__

    def with_little_memory(maker: FeatureMaker, batch: Any) -> torch.Tensor:
        if batch.input_ids_BT.numel() > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(maker, batch)

    monkeypatch.setattr(FeatureMaker, "__call__", with_little_memory)
    again = tiny_run(scarce, tiny_model_folder, warmup={"checkpoints": checkpoints})

    assert gradsift("run", again, "--until", "features") == 0

    found = stored_features(scarce / "run" / "features" / "pool" / name)
    for row_id, row in expected.items():
        assert largest_relative_error(found[row_id], row) < 1e-5


def test_one_row_without_enough_memory_is_told_in_a_line(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_memory(_: FeatureMaker, __: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(FeatureMaker, "__call__", without_memory)

    assert gradsift("run", tiny_run(tmp_path, tiny_model_folder), "--until", "features") == 2

    assert "out of memory on a row of" in capsys.readouterr().err
