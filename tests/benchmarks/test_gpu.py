from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_benchmark_of_a_card_runs_at_toy_size(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(__file__).resolve().parents[2] / "benchmarks"), *sys.path])
    import gpu

    gpu.main(["--toy"])

    assert "examples a second" in capsys.readouterr().out
