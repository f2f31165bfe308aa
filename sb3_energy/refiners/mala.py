"""The Metropolis-adjusted Langevin algorithm."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.checks import plain_fields
from sb3_energy.refiners.gradient_start import check_steps
from sb3_energy.refiners.langevin import Langevin
from sb3_energy.refiners.metropolis import accept
from sb3_energy.refiners.norms import clipped_gradients, squared_norm
from sb3_energy.refiners.tuned_start import TunedStart, check_target_acceptance, over_event
from sb3_energy.types import RefinerInfo, RefinerState, Target, Tick


@dataclass(frozen=True)
class MetropolisAdjustedLangevin(TunedStart):
    """
    A Langevin step, kept with the probability that leaves ``exp(-E)`` as it is, whatever the step size.
    MALA (Roberts and Tweedie 1996, section 1.4); with a bound on the drift it is their truncated algorithm, and as exact:
    the test knows the drift that was used.

    :param step_size: ``ε``, a number or a schedule
    :param max_grad_norm: longest gradient of a particle, in Euclidean norm (``None``: any)
    :param max_displacement: largest drift of a coordinate in one step, noise not counted (``None``: any)
    :param target_acceptance: mean acceptance that the step size of each observation is adapted to during the first half of
        the steps (``None``: it is not adapted). .574 is best in many dimensions (Roberts and Rosenthal 1998). Only the
        second half leaves the target as it is. In the first the step size follows the chain: with one particle or few for
        an observation it is another one in each mode, and shifts the modes' weights. And a few steps are too few to find
        a step size in: this is for dozens of steps, or to find the ``step_size`` that then serves a policy's two to ten.
        Without noise nothing is tested, and nothing tuned.
    :raises ValueError: if a number is out of range
    """

    step_size: float | Schedule = 0.3
    max_grad_norm: float | None = None
    max_displacement: float | None = 1.0
    target_acceptance: float | None = None

    exact: ClassVar[bool] = True
    resamples: ClassVar[bool] = False
    default_steps: ClassVar[int] = 5
    default_particles: ClassVar[int] = 128
    max_steps: ClassVar[int | None] = None
    estimators: ClassVar[tuple[str, ...]] = ("base", "soft_value")
    head: ClassVar[str | None] = None
    search_space: ClassVar[dict[str, Any]] = dict(steps=(1, 10), particles_pow=(0, 7), step_size=(1e-2, 1.0))

    def __post_init__(self) -> None:
        plain_fields(self)
        check_steps(self.step_size, self.max_grad_norm, self.max_displacement)
        check_target_acceptance(self.target_acceptance)

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, RefinerInfo]:
        """
        :param state: with the gradients at its particles in ``extra``, and the scale of the step size if it is tuned
        :param target: what to draw from
        :param tick: which step of how many
        :param generator: source of the noise
        :return: the next state, and with which probability each particle moved and how far
        """
        extra = state.extra
        state, step_size = self._untuned(state, tick)
        old, step = state.particles, over_event(step_size, state.particles)
        noise = th.randn(old.shape, generator=generator, device=old.device, dtype=old.dtype)
        scale = step.sqrt() if isinstance(step, th.Tensor) else math.sqrt(step)
        new = old + self._drift(state.extra, step) + scale * noise
        energies, gradients = energy_and_grad(target.energy, new)
        backward = squared_norm(old - new - self._drift(gradients, step))
        log_ratio = state.energies - energies + 0.5 * squared_norm(noise) - backward / (2.0 * step_size)
        state, info = accept(self, tick, state, RefinerState(new, energies, gradients), log_ratio, generator)
        return self._tuned(extra, state, info, tick), info

    def deterministic(self) -> Langevin:
        """
        :return: gradient descent with the same steps
        """
        return Langevin(self.step_size, 0.0, self.max_grad_norm, self.max_displacement)

    def _drift(self, gradients: th.Tensor, step_size: float | th.Tensor) -> th.Tensor:
        drift = -0.5 * step_size * clipped_gradients(gradients, self.max_grad_norm)
        return drift if self.max_displacement is None else drift.clamp(-self.max_displacement, self.max_displacement)
