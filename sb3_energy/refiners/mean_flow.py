"""One step with a learned average velocity."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch as th

from sb3_energy.refiners.flow import TransportSteps
from sb3_energy.types import RefinerState, Target, Tick


@dataclass(frozen=True)
class MeanFlow(TransportSteps):
    """
    ``x ← x + (r - t) u(x, t, r)`` with the average velocity ``u`` of a flow from the base to the target: one step takes the
    whole way, and costs one evaluation of the network.

    MeanFlow (Geng et al. 2025), with time from the base at 0 to the target at 1. More steps than one take the
    way in as many parts. Steps ask no random numbers.
    """

    exact: ClassVar[bool] = False
    resamples: ClassVar[bool] = False
    default_steps: ClassVar[int] = 1
    default_particles: ClassVar[int] = 8
    max_steps: ClassVar[int | None] = None
    estimators: ClassVar[tuple[str, ...]] = ("divergence", "base", "soft_value", "smc")
    head: ClassVar[str | None] = "average_velocity"
    search_space: ClassVar[dict[str, Any]] = dict(steps=(1, 2), particles_pow=(0, 4))

    def init(self, particles: th.Tensor, target: Target) -> RefinerState:
        """
        Evaluate the initial particles' energies.

        :param particles: ``(B, N, *E)``, draws from the base
        :param target: with its ``average_velocity``
        :return: particles and energies
        :raises ValueError: if the target has no average velocity
        """
        if target.average_velocity is None:
            raise ValueError("mean_flow needs Target.average_velocity, (B, N, *E), t, r (B, N) -> (B, N, *E), got None")
        return RefinerState(particles, target.energy(particles))

    def transport(self, particles: th.Tensor, target: Target, tick: Tick) -> th.Tensor:
        assert target.average_velocity is not None  # init has checked it
        begin, end = self.times(particles, tick)
        return particles + tick.dt * target.average_velocity(particles, begin, end)

    def times(self, particles: th.Tensor, tick: Tick) -> tuple[th.Tensor, th.Tensor]:
        """
        Compute the interval of time that a step covers.

        :param particles: ``(B, N, *E)``
        :param tick: which step of how many
        :return: ``(B, N)`` when the step begins and when it ends
        """
        begin = particles.new_full(particles.shape[:2], tick.step * tick.dt)
        return begin, begin + tick.dt
