"""Hamiltonian Monte Carlo."""

from dataclasses import dataclass
from typing import ClassVar

import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.refiners.checks import check_integer
from sb3_energy.refiners.gradient_start import GradientStart, check_steps
from sb3_energy.refiners.langevin import Langevin
from sb3_energy.refiners.metropolis import accept
from sb3_energy.refiners.norms import clipped_gradients, squared_norm
from sb3_energy.schedules import Squared, value_at
from sb3_energy.types import RefinerInfo, RefinerState, Target, Tick


@dataclass(frozen=True)
class HamiltonianMonteCarlo(GradientStart):
    """
    A momentum, some leapfrog steps of Hamilton's equations, and the test that leaves ``exp(-E)`` as it is.
    HMC (Duane et al. 1987; Neal 2011, section 5.3), with a mass of 1 and an acceptance for each particle.

    The bounds on gradient and displacement keep the leapfrog reversible and its volume preserved, so the draws stay exact.

    :param step_size: ``ε`` of the leapfrog, a number or a schedule; one leapfrog is a Langevin step of ``ε²``
    :param n_leapfrogs: leapfrog steps, each of which costs a gradient, between two tests
    :param max_grad_norm: longest gradient of a particle, in Euclidean norm (``None``: any)
    :param max_displacement: largest move of a coordinate in one leapfrog (``None``: any)
    :raises ValueError: if a number is out of range
    """

    step_size: float | Schedule = 0.3
    n_leapfrogs: int = 4
    max_grad_norm: float | None = None
    max_displacement: float | None = 1.0

    exact: ClassVar[bool] = True
    resamples: ClassVar[bool] = False
    default_steps: ClassVar[int] = 2
    default_particles: ClassVar[int] = 16
    max_steps: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        check_steps(self.step_size, self.max_grad_norm, self.max_displacement)
        check_integer("n_leapfrogs", self.n_leapfrogs, minimum=1)

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, RefinerInfo]:
        """
        :param state: with the gradients at its particles in ``extra``
        :param target: what to draw from
        :param tick: which step of how many
        :param generator: source of the momenta and the test's draws
        :return: the next state, and with which probability each particle moved and how far
        """
        old, step_size = state.particles, value_at(self.step_size, tick.remaining)
        momenta = th.randn(old.shape, generator=generator, device=old.device, dtype=old.dtype)
        new, final_momenta = self._leapfrog(state, momenta, target, step_size)
        log_ratio = state.energies - new.energies + 0.5 * (squared_norm(momenta) - squared_norm(final_momenta))
        return accept(self, tick, state, new, log_ratio, generator)

    def deterministic(self) -> Langevin:
        """
        :return: gradient descent, with steps of a leapfrog that starts at rest
        """
        step_size = Squared(self.step_size) if callable(self.step_size) else self.step_size**2
        return Langevin(step_size, 0.0, self.max_grad_norm, self.max_displacement)

    def _leapfrog(
        self, state: RefinerState, momenta: th.Tensor, target: Target, step_size: float
    ) -> tuple[RefinerState, th.Tensor]:
        particles, energies, gradients = state
        for _ in range(self.n_leapfrogs):
            momenta = momenta - 0.5 * step_size * clipped_gradients(gradients, self.max_grad_norm)
            move = step_size * momenta
            if self.max_displacement is not None:
                move = move.clamp(-self.max_displacement, self.max_displacement)
            particles = particles + move
            energies, gradients = energy_and_grad(target.energy, particles)
            momenta = momenta - 0.5 * step_size * clipped_gradients(gradients, self.max_grad_norm)
        return RefinerState(particles, energies, gradients), momenta
