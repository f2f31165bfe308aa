"""The Metropolis-adjusted Langevin algorithm."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.checks import plain_fields
from sb3_energy.refiners.langevin import Langevin, check_steps, langevin_drift
from sb3_energy.refiners.metropolis import MetropolisChain, check_target_acceptance
from sb3_energy.schedules import Geometric
from sb3_energy.stats import noise_like, normal_log_prob
from sb3_energy.types import RefinerState, Target

FALLING_STEPS = Geometric(0.3, 0.02)
"""Default step sizes. What a step is too long for, the test rejects, and a later one moves."""


@dataclass(frozen=True)
class MetropolisAdjustedLangevin(MetropolisChain):
    """
    A Langevin step, kept with the probability that leaves ``exp(-E)`` as it is, whatever the step size.
    MALA (Roberts and Tweedie 1996, section 1.4); with a bound on the drift it is their truncated algorithm, and as exact:
    the test knows the drift that was used.

    :param step_size: ``ε``, a number or a schedule; by default it falls from .3 to .02, so that a target that is much narrower
        than the base meets a step that fits, too
    :param max_grad_norm: longest gradient of a particle, in Euclidean norm (``None``: any)
    :param max_displacement: largest drift of a coordinate in one step, noise not counted (``None``: any)
    :param target_acceptance: mean acceptance that the step size of each observation is adapted to during the first half of
        the steps (``None``: it is not adapted). .574 is best in many dimensions (Roberts and Rosenthal 1998). Only the
        second half leaves the target as it is: in the first the step size follows the chain, so with few particles for an
        observation it differs between modes and shifts their weights. Two to ten steps are too few to find a step size:
        this is for dozens of steps, or to find the ``step_size`` of a policy. Without noise nothing is tested or tuned
    :raises ValueError: if a number is out of range
    """

    step_size: float | Schedule = FALLING_STEPS
    max_grad_norm: float | None = None
    max_displacement: float | None = 1.0
    target_acceptance: float | None = None

    exact: ClassVar[bool] = True
    resamples: ClassVar[bool] = False
    default_steps: ClassVar[int] = 3
    default_particles: ClassVar[int] = 128
    max_steps: ClassVar[int | None] = None
    estimators: ClassVar[tuple[str, ...]] = ("base", "soft_value", "smc")
    head: ClassVar[str | None] = None
    search_space: ClassVar[dict[str, Any]] = dict(steps=(1, 10), particles_pow=(0, 7), step_size=(1e-2, 1.0))

    def __post_init__(self) -> None:
        plain_fields(self)
        check_steps(self.step_size, self.max_grad_norm, self.max_displacement)
        check_target_acceptance(self.target_acceptance)

    def propose(
        self, state: RefinerState, target: Target, step_size: float | th.Tensor, *, generator: th.Generator | None
    ) -> tuple[RefinerState, th.Tensor]:
        """
        Propose a Langevin step and compute its Metropolis-Hastings ratio.

        :param state: with the gradients at its particles in ``extra``
        :param target: what to draw from
        :param step_size: ``ε``, a number or ``(B, 1, *1)``
        :param generator: source of the noise
        :return: the state after a Langevin step, and the logarithm of Hastings' ratio
        """
        new, noise = langevin_proposal(self, state.particles, state.extra, step_size, generator)
        energies, gradients = energy_and_grad(target.energy, new)
        way_back = log_way_back(self, state.particles, new, gradients, step_size, noise)
        return RefinerState(new, energies, gradients), state.energies - energies + way_back

    def deterministic(self) -> Langevin:
        """
        Return the variant without noise or rejections.

        :return: gradient descent with the same steps
        """
        return Langevin(self.step_size, 0.0, max_grad_norm=self.max_grad_norm, max_displacement=self.max_displacement)

    def unadjusted(self) -> Langevin:
        """
        Return the variant without the Metropolis test, whose decision has no derivative.

        :return: Langevin's steps of the same sizes
        """
        return Langevin(self.step_size, max_grad_norm=self.max_grad_norm, max_displacement=self.max_displacement)


def langevin_proposal(
    bounds: Any, particles: th.Tensor, gradients: th.Tensor, step_size: float | th.Tensor, generator: th.Generator | None
) -> tuple[th.Tensor, th.Tensor]:
    """
    Draw a Langevin step; with gradients of 0 it is a random walk's.

    :param bounds: with ``max_grad_norm`` and ``max_displacement``
    :param particles: ``(B, N, *E)``
    :param gradients: ``(B, N, *E)``
    :param step_size: ``ε``, a number or ``(B, 1, *1)``, or of each coordinate ``(B, 1, *E)``
    :param generator: source of the noise (``None``: torch's global one)
    :return: particles after the step, and its noise
    """
    noise = noise_like(particles, generator)
    return particles + langevin_drift(bounds, gradients, step_size) + step_size**0.5 * noise, noise


def log_way_back(
    bounds: Any,
    old: th.Tensor,
    new: th.Tensor,
    new_gradients: th.Tensor,
    step_size: float | th.Tensor,
    noise: th.Tensor,
) -> th.Tensor:
    """
    The logarithm of how likely a Langevin step back is, over that of the step: the proposals' part of Hastings' ratio.

    :param bounds: those of the step
    :param old: ``(B, N, *E)`` particles before the step
    :param new: ``(B, N, *E)`` after it
    :param new_gradients: ``(B, N, *E)`` there
    :param step_size: that of the step
    :param noise: ``(B, N, *E)`` of the step
    :return: ``(B, N)``
    """
    noise_back = (old - new - langevin_drift(bounds, new_gradients, step_size)) / step_size**0.5
    return normal_log_prob(noise_back.flatten(2)) - normal_log_prob(noise.flatten(2))
