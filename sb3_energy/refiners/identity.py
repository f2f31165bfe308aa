"""The refiner that does nothing."""

from dataclasses import dataclass
from typing import ClassVar

import torch as th

from sb3_energy.types import RefinerInfo, RefinerState, Target, Tick


@dataclass(frozen=True)
class Identity:
    """Leaves the particles where they are: the base alone. With EnergySAC and ``backbone="plain"`` this is SB3's SAC."""

    exact: ClassVar[bool] = False
    resamples: ClassVar[bool] = False
    default_steps: ClassVar[int] = 0
    default_particles: ClassVar[int] = 1
    max_steps: ClassVar[int | None] = 0
    estimators: ClassVar[tuple[str, ...]] = ("base",)
    head: ClassVar[str | None] = None

    def init(self, particles: th.Tensor, target: Target) -> RefinerState:
        """
        Evaluate the initial particles' energies.

        :param particles: ``(B, N, *E)``
        :param target: whose energy the particles get
        :return: the particles and their energies
        """
        return RefinerState(particles, target.energy(particles))

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, RefinerInfo]:
        """
        Leave the particles where they are.

        :param state: comes back as it is
        :param target: not asked
        :param tick: not asked
        :param generator: not asked
        :return: the state, and a displacement of 0
        """
        return state, RefinerInfo.of_move(state.particles, state.particles)

    def deterministic(self) -> "Identity":
        """
        Return the refiner unchanged, because it has no noise.

        :return: itself
        """
        return self
