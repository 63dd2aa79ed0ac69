"""Origins: what tells one from another."""

from __future__ import annotations

from pathlib import Path

from gradsift.features import TunedOrigin
from gradsift.machine import fingerprint

FILES = {"adapter_model.safetensors": {"size": 8, "sha256": "a"}}


def test_a_tuned_base_is_told_by_its_adapters_files_wherever_they_lie() -> None:
    origins = [TunedOrigin("sums", Path(folder), FILES) for folder in ("here", "there")]
    assert [origin.fingerprint() for origin in origins] == [fingerprint(FILES)] * 2
    changed = {"adapter_model.safetensors": {"size": 8, "sha256": "b"}}
    assert TunedOrigin("sums", Path("here"), changed).fingerprint() != fingerprint(FILES)
