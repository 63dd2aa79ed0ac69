"""Real optimizer steps from a checkpoint, and the way back: torch's AdamW with the moments restored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradsift.model import AdamSettings, Moments


@dataclass(frozen=True)
class StepSettings:
    """How a step is taken, besides its direction."""

    learning_rate: float
    max_grad_norm: float
    """Gradients of a larger norm are scaled down to it, as in training."""


class AdamSteps:
    """Steps of torch.optim.AdamW from a checkpoint, clipped as in training and without weight decay.

    The parameters keep `requires_grad` as it is: their gradients are given, not computed. Vectors [P] hold all
    matrices one after the other, in the order of `parameters`.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        moments: Mapping[str, Moments],
        adam: AdamSettings,
        settings: StepSettings,
    ) -> None:
        self._parameters, self._moments, self._adam, self._settings = dict(parameters), dict(moments), adam, settings
        self._start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._optimizer = self._restored_optimizer()

    @property
    def adam(self) -> AdamSettings:
        """Step count, betas and epsilon as they stand now."""
        first = next(iter(self._parameters.values()))
        return AdamSettings(int(self._optimizer.state[first]["step"]), self._adam.betas, self._adam.eps)

    @property
    def moments(self) -> Moments:
        """The moments as they stand now, [P] each."""
        states = [self._optimizer.state[parameter] for parameter in self._parameters.values()]
        first_P, second_P = (torch.cat([state[key].flatten() for state in states]) for key in ("exp_avg", "exp_avg_sq"))
        return Moments(first_P, second_P)

    def take(self, gradient_P: Tensor) -> tuple[Tensor, bool]:
        """Take a step on this gradient; the direction [P] that the weights went, η times which they lost, and whether
        the gradient was clipped."""
        before = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        sizes = [parameter.numel() for parameter in self._parameters.values()]
        for parameter, part_D in zip(self._parameters.values(), gradient_P.split(sizes), strict=True):
            parameter.grad = part_D.reshape(parameter.shape).to(parameter.dtype, copy=True)
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), self._settings.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        lost = [(before[name] - parameter.detach()).flatten().float() for name, parameter in self._parameters.items()]
        return torch.cat(lost) / self._settings.learning_rate, bool(norm > self._settings.max_grad_norm)

    def undo(self) -> None:
        """Go back to the checkpoint: weights, moments and step count, bit for bit."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._start[name])
        self._optimizer = self._restored_optimizer()

    def _restored_optimizer(self) -> torch.optim.AdamW:
        optimizer = torch.optim.AdamW(
            list(self._parameters.values()),
            lr=self._settings.learning_rate,
            betas=self._adam.betas,
            eps=self._adam.eps,
            weight_decay=0.0,
        )
        for name, parameter in self._parameters.items():
            optimizer.state[parameter] = {
                "step": torch.tensor(float(self._adam.step)),
                "exp_avg": self._moments[name].first_OI.to(parameter, copy=True),
                "exp_avg_sq": self._moments[name].second_OI.to(parameter, copy=True),
            }
        return optimizer
