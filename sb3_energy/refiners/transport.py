"""What refiners that follow a learned velocity share."""

from abc import ABC, abstractmethod
from typing import Any

import torch as th

from sb3_energy.refiners.norms import squared_norm
from sb3_energy.types import RefinerInfo, RefinerState, Target, Tick


class TransportSteps(ABC):
    """Steps that move each particle by a function of its place and of nothing else: no noise, no energy."""

    @abstractmethod
    def transport(self, particles: th.Tensor, target: Target, tick: Tick) -> th.Tensor:
        """
        One step as a function of the particles, for whoever differentiates it.

        :param particles: ``(B, N, *E)``
        :param target: with what has been learned
        :param tick: which step of how many
        :return: ``(B, N, *E)``
        """

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, RefinerInfo]:
        """
        :param state: particles at the time the step begins
        :param target: with what has been learned
        :param tick: which step of how many
        :param generator: not asked
        :return: particles at the time the step ends, and how far they went
        """
        particles = self.transport(state.particles, target, tick)
        length = squared_norm(particles - state.particles).sqrt()
        return RefinerState(particles, target.energy(particles)), RefinerInfo(th.ones_like(length), length)

    def deterministic(self) -> Any:
        """
        :return: itself
        """
        return self
