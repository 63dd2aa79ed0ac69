"""Adam's state at a checkpoint: its settings, and the moments of a parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class AdamSettings:
    """What AdamW stood at when the checkpoint was saved: t steps taken, its betas and epsilon."""

    step: int
    betas: tuple[float, float]
    eps: float


@dataclass(frozen=True)
class Moments:
    """First and second moment of one parameter, float32 [O, I], shared by all examples."""

    first_OI: Tensor
    second_OI: Tensor

    def to(self, device: torch.device) -> Moments:
        """The same moments on the device."""
        return Moments(self.first_OI.to(device), self.second_OI.to(device))
