"""Hamiltonian Monte Carlo."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.checks import check_integer, plain_fields
from sb3_energy.refiners.langevin import Langevin, check_steps, clipped_gradients
from sb3_energy.refiners.metropolis import MetropolisChain, check_target_acceptance
from sb3_energy.schedules import Squared
from sb3_energy.stats import noise_like
from sb3_energy.types import RefinerState, Target


@dataclass(frozen=True)
class HamiltonianMonteCarlo(MetropolisChain):
    """
    A momentum, some leapfrog steps of Hamilton's equations, and the test that leaves ``exp(-E)`` as it is.
    HMC (Duane et al. 1987; Neal 2011, section 5.3), with a mass of 1 and an acceptance for each particle.

    The bounds on gradient and displacement keep the leapfrog reversible and its volume preserved, so the draws stay exact.

    :param step_size: ``ε`` of the leapfrog, a number or a schedule; one leapfrog is a Langevin step of ``ε²``
    :param n_leapfrogs: leapfrog steps, each of which costs a gradient, between two tests
    :param max_grad_norm: longest gradient of a particle, in Euclidean norm (``None``: any)
    :param max_displacement: largest move of a coordinate in one leapfrog (``None``: any)
    :param target_acceptance: mean acceptance that the step size of each observation is adapted to during the first half of
        the steps (``None``: it is not adapted), as in :class:`sb3_energy.refiners.MetropolisAdjustedLangevin`. .65 is best
        in many dimensions (Beskos et al. 2013)
    :raises ValueError: if a number is out of range
    """

    step_size: float | Schedule = 0.3
    n_leapfrogs: int = 4
    max_grad_norm: float | None = None
    max_displacement: float | None = 1.0
    target_acceptance: float | None = None

    exact: ClassVar[bool] = True
    resamples: ClassVar[bool] = False
    default_steps: ClassVar[int] = 2
    default_particles: ClassVar[int] = 128
    max_steps: ClassVar[int | None] = None
    estimators: ClassVar[tuple[str, ...]] = ("base", "soft_value", "smc")
    head: ClassVar[str | None] = None
    search_space: ClassVar[dict[str, Any]] = dict(steps=(1, 3), particles_pow=(0, 7), step_size=(0.03, 1.0))

    def __post_init__(self) -> None:
        plain_fields(self)
        check_steps(self.step_size, self.max_grad_norm, self.max_displacement)
        check_integer("n_leapfrogs", self.n_leapfrogs, minimum=1)
        check_target_acceptance(self.target_acceptance)

    def propose(
        self, state: RefinerState, target: Target, step_size: float | th.Tensor, *, generator: th.Generator | None
    ) -> tuple[RefinerState, th.Tensor]:
        """
        Draw momenta and propose the end of a leapfrog trajectory.

        :param state: with the gradients at its particles in ``extra``
        :param target: what to draw from
        :param step_size: ``ε``, a number or ``(B, 1, *1)``
        :param generator: source of the momenta
        :return: the state after the leapfrog steps, and by how much they lowered the Hamiltonian
        """
        first = noise_like(state.particles, generator)
        new, last = self._leapfrog(state, first, target, step_size=step_size)
        kinetic_drop = 0.5 * (first.flatten(2).square().sum(-1) - last.flatten(2).square().sum(-1))
        return new, state.energies - new.energies + kinetic_drop

    def deterministic(self) -> Langevin:
        """
        Return the variant that uses no random numbers.

        :return: gradient descent, with steps of a leapfrog that starts at rest
        """
        step_size = Squared(self.step_size) if callable(self.step_size) else self.step_size**2
        return Langevin(step_size, 0.0, max_grad_norm=self.max_grad_norm, max_displacement=self.max_displacement)

    def _leapfrog(
        self, state: RefinerState, momenta: th.Tensor, target: Target, step_size: float | th.Tensor
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
