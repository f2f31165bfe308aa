"""What estimators ask of a refiner whose steps draw from a Gaussian."""

import math
from typing import Any, Protocol

import torch as th

from sb3_energy.types import RefinerInfo, RefinerState, Target, Tick


class KernelRefiner(Protocol):
    """A refiner that moves each particle alone, by a draw from a Gaussian."""

    def init(self, particles: th.Tensor, target: Target) -> RefinerState:
        """As a refiner's."""
        ...

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, RefinerInfo]:
        """As a refiner's."""
        ...

    def kernel(self, state: RefinerState, target: Target, tick: Tick) -> tuple[th.Tensor, float]:
        """Mean ``(B, N, *E)`` and standard deviation of what a step draws from."""
        ...


def gaussian_log_prob(x: th.Tensor, mean: th.Tensor, std: Any) -> th.Tensor:
    """
    :param x: ``(..., D)``
    :param mean: broadcasts to it
    :param std: a number, or a tensor ``(..., D)`` that broadcasts to it
    :return: ``(...)``, the log-density of a Gaussian of independent coordinates
    """
    log_std = std.log().sum(-1) if isinstance(std, th.Tensor) else x.shape[-1] * math.log(std)
    return -0.5 * ((x - mean) / std).square().sum(-1) - log_std - 0.5 * x.shape[-1] * math.log(2.0 * math.pi)
