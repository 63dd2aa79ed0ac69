"""The benchmark of stores' sizes on a tiny model: what it keeps is taken for nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import gradsift, tiny_run

from gradsift.config import load_config
from gradsift.pipeline import checkpoints_of

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def store_size(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import store_size

    monkeypatch.setattr(store_size, "FORMS", (store_size.Form(64, "float16"), store_size.Form(64, "int1")))
    return store_size


def test_kept_scores_are_read_again_unless_they_are_of_other_settings(
    tmp_path: Path, tiny_model_folder: Path, store_size: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_run(tmp_path, tiny_model_folder)
    assert gradsift("warmup", path) == 0
    config = load_config(path)
    checkpoint, kept = checkpoints_of(config)[0], tmp_path / "run" / "store-size"

    first = store_size._scores(config, checkpoint, [0])
    exact, stored = first["sums/exact"], first["sums/64/float16/0"]
    assert exact.shape == (24, 2)
    assert float(torch.corrcoef(torch.stack([exact.flatten(), stored.flatten()]))[0, 1]) > 0.5

    with monkeypatch.context() as patched:
        patched.setattr(store_size, "_computed", lambda *_: pytest.fail("was made again"))
        again = store_size._scores(config, checkpoint, [0])
    assert all(torch.equal(again[name], scores) for name, scores in first.items())

    store_size._scores(load_config(path, ["features.adam=sgd"]), checkpoint, [0])
    store_size._scores(config, checkpoint, [1])
    assert len(list(kept.iterdir())) == 3
    monkeypatch.setattr(store_size, "FORMS", (store_size.Form(32, "float16"),))
    assert "sums/32/float16/0" in store_size._scores(config, checkpoint, [0])
