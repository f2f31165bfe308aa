"""The unadjusted Langevin algorithm."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.checks import check_bool, check_schedule, plain_fields
from sb3_energy.refiners.gradient_start import check_steps
from sb3_energy.refiners.loop import gaussian_step
from sb3_energy.refiners.norms import clipped_gradients
from sb3_energy.schedules import value_at
from sb3_energy.types import RefinerInfo, RefinerState, Target, Tick


@dataclass(frozen=True)
class Langevin:
    """
    ``x ← x - (ε/2) ∇E(x) + noise_scale √ε ξ``, whose stationary law is ``exp(-E)`` as ``ε → 0``.
    The unadjusted Langevin algorithm (Roberts and Tweedie 1996, section 1.4); on a Gaussian of variance ``σ²`` its
    stationary variance is ``σ² / (1 - ε / (4 σ²))``.

    :param step_size: ``ε``, a number or a schedule
    :param noise_scale: 1 samples, 0 descends, a schedule from 0 to 1 transports first and samples then
    :param max_grad_norm: longest gradient of a particle, in Euclidean norm (``None``: any)
    :param max_displacement: largest drift of a coordinate in one step (``None``: any); the noise is not counted, so that a
        step is a draw from a Gaussian
    :param differentiable: whether steps keep their graph where gradients are enabled, so that what comes out can be
        differentiated with respect to the start and to the energy's parameters
    :raises ValueError: if a number is out of range
    :raises TypeError: if something has the wrong type
    """

    step_size: float | Schedule = 0.03
    noise_scale: float | Schedule = 1.0
    max_grad_norm: float | None = None
    max_displacement: float | None = 1.0
    differentiable: bool = False

    exact: ClassVar[bool] = True
    resamples: ClassVar[bool] = False
    default_steps: ClassVar[int] = 3
    default_particles: ClassVar[int] = 128
    max_steps: ClassVar[int | None] = None
    estimators: ClassVar[tuple[str, ...]] = ("base", "soft_value", "mixture", "path")
    head: ClassVar[str | None] = None
    search_space: ClassVar[dict[str, Any]] = dict(steps=(1, 10), particles_pow=(0, 7), step_size=(1e-3, 0.5))

    def __post_init__(self) -> None:
        plain_fields(self)
        check_steps(self.step_size, self.max_grad_norm, self.max_displacement)
        check_schedule("noise_scale", self.noise_scale, minimum=0.0)
        check_bool("differentiable", self.differentiable)

    def init(self, particles: th.Tensor, target: Target) -> RefinerState:
        """
        :param particles: ``(B, N, *E)``
        :param target: what to draw from
        :return: particles, energies, and the gradients in ``extra``
        """
        return RefinerState(particles, *self._energy_and_grad(target, particles))

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, RefinerInfo]:
        """
        :param state: with the gradients at its particles in ``extra``, or ``None`` there
        :param target: what to draw from
        :param tick: which step of how many
        :param generator: source of the noise
        :return: the next state, and how far the particles went
        """
        particles = gaussian_step(*self.kernel(state, target, tick), generator)
        if tick.is_last:  # nobody will ask for the gradients
            energies, next_gradients = target.energy(particles), None
        else:
            energies, next_gradients = self._energy_and_grad(target, particles)
        length = (particles - state.particles).flatten(2).norm(dim=-1)
        return RefinerState(particles, energies, next_gradients), RefinerInfo(th.ones_like(length), length)

    def deterministic(self) -> "Langevin":
        """
        :return: gradient descent with the same steps
        """
        return replace(self, noise_scale=0.0)

    def kernel(self, state: RefinerState, target: Target, tick: Tick) -> tuple[th.Tensor, float]:
        """
        The Gaussian that a step draws from.

        :param state: with the gradients at its particles in ``extra``, or ``None`` there
        :param target: what to draw from
        :param tick: which step of how many
        :return: its mean ``(B, N, *E)`` and its standard deviation
        """
        gradients = self._energy_and_grad(target, state.particles)[1] if state.extra is None else state.extra
        step_size = value_at(self.step_size, tick.remaining)
        drift = -0.5 * step_size * clipped_gradients(gradients, self.max_grad_norm)
        if self.max_displacement is not None:
            drift = drift.clamp(-self.max_displacement, self.max_displacement)
        return state.particles + drift, value_at(self.noise_scale, tick.remaining) * math.sqrt(step_size)

    def _energy_and_grad(self, target: Target, particles: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return energy_and_grad(target.energy, particles, create_graph=self.differentiable and th.is_grad_enabled())
