"""Origins: what the features of a store are made with, a checkpoint or the base model alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


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
