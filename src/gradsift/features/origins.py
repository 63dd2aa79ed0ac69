"""Origins: what the features of a store are made with: a checkpoint, the base, or the base trained on a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gradsift.baselines import TOV
from gradsift.machine import fingerprint


class Origin(Protocol):
    """What the features of a store are made with: one for every store of the pool."""

    @property
    def name(self) -> str:
        """The store's folder."""
        ...

    @property
    def learning_rate(self) -> float:
        """How much it counts beside others."""
        ...


@dataclass(frozen=True)
class SoleOrigin:
    """Where all features of a method come from that knows no checkpoints: one origin of weight 1."""

    name: str
    """The method's."""
    learning_rate: float = 1.0


@dataclass(frozen=True)
class TunedOrigin:
    """The base as it is when it was trained on a target's examples: where the second losses of `tov` come from."""

    target: str
    adapter: Path
    """Folder of the adapter that was trained."""
    files: Mapping[str, Any]
    """The adapter's files, as its manifest vouches for them: sizes and checksums by name."""
    learning_rate: float = 1.0

    @property
    def name(self) -> str:
        """The store's folder: one a target."""
        return f"{TOV}/{self.target}"

    def fingerprint(self) -> str:
        """Of what features depend on: the adapter's files."""
        return fingerprint(dict(self.files))
