"""Hamiltonian Monte Carlo."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.checks import check_integer, plain_fields
from sb3_energy.refiners.gradient_start import check_steps
from sb3_energy.refiners.langevin import Langevin
from sb3_energy.refiners.metropolis import accept
from sb3_energy.refiners.norms import clipped_gradients, squared_norm
from sb3_energy.refiners.tuned_start import TunedStart, check_target_acceptance, over_event
from sb3_energy.schedules import Squared
from sb3_energy.types import RefinerInfo, RefinerState, Target, Tick


@dataclass(frozen=True)
class HamiltonianMonteCarlo(TunedStart):
    """
    A momentum, some leapfrog steps of Hamilton's equations, and the test that leaves ``exp(-E)`` as it is.
    HMC (Duane et al. 1987; Neal 2011, section 5.3), with a mass of 1 and an acceptance for each particle.

    The bounds on gradient and displacement keep the leapfrog reversible and its volume preserved, so the draws stay exact.

    :param step_size: ``ε`` of the leapfrog, a number or a schedule; one leapfrog is a Langevin step of ``ε²``
    :param n_leapfrogs: leapfrog steps, each of which costs a gradient, between two tests
    :param max_grad_norm: longest gradient of a particle, in Euclidean norm (``None``: any)
    :param max_displacement: largest move of a coordinate in one leapfrog (``None``: any)
    :param target_acceptance: mean acceptance that the step size of each observation is adapted to during the first half of
        the steps (``None``: it is not adapted). .65 is best in many dimensions (Beskos et al. 2013). Only the second
        half leaves the target as it is. In the first the step size follows the chain: with one particle or few for
        an observation it is another one in each mode, and shifts the modes' weights. And a few steps are too few to find
        a step size in: this is for dozens of steps, or to find the ``step_size`` that then serves a policy's two to ten.
        Without noise nothing is tested, and nothing tuned.
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
    estimators: ClassVar[tuple[str, ...]] = ("base", "soft_value")
    head: ClassVar[str | None] = None
    search_space: ClassVar[dict[str, Any]] = dict(steps=(1, 3), particles_pow=(0, 7), step_size=(0.03, 1.0))

    def __post_init__(self) -> None:
        plain_fields(self)
        check_steps(self.step_size, self.max_grad_norm, self.max_displacement)
        check_integer("n_leapfrogs", self.n_leapfrogs, minimum=1)
        check_target_acceptance(self.target_acceptance)

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, RefinerInfo]:
        """
        :param state: with the gradients at its particles in ``extra``, and the scale of the step size if it is tuned
        :param target: what to draw from
        :param tick: which step of how many
        :param generator: source of the momenta and the test's draws
        :return: the next state, and with which probability each particle moved and how far
        """
        extra = state.extra
        state, step_size = self._untuned(state, tick)
        old = state.particles
        momenta = th.randn(old.shape, generator=generator, device=old.device, dtype=old.dtype)
        new, final_momenta = self._leapfrog(state, momenta, target, over_event(step_size, old))
        log_ratio = state.energies - new.energies + 0.5 * (squared_norm(momenta) - squared_norm(final_momenta))
        state, info = accept(self, tick, state, new, log_ratio, generator)
        return self._tuned(extra, state, info, tick), info

    def deterministic(self) -> Langevin:
        """
        :return: gradient descent, with steps of a leapfrog that starts at rest
        """
        step_size = Squared(self.step_size) if callable(self.step_size) else self.step_size**2
        return Langevin(step_size, 0.0, self.max_grad_norm, self.max_displacement)

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
