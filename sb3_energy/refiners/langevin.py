"""The unadjusted Langevin algorithm, and the drift that other refiners with gradients take over."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.checks import check_bool, check_positive, check_schedule, plain_fields
from sb3_energy.schedules import value_at
from sb3_energy.stats import gaussian_draw
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
    estimators: ClassVar[tuple[str, ...]] = ("base", "soft_value", "smc", "mixture", "path")
    head: ClassVar[str | None] = None
    search_space: ClassVar[dict[str, Any]] = dict(steps=(1, 10), particles_pow=(0, 7), step_size=(1e-3, 0.5))

    def __post_init__(self) -> None:
        plain_fields(self)
        check_steps(self.step_size, self.max_grad_norm, self.max_displacement)
        check_schedule("noise_scale", self.noise_scale, minimum=0.0)
        check_bool("differentiable", self.differentiable)

    def init(self, particles: th.Tensor, target: Target) -> RefinerState:
        """
        Evaluate the initial particles' energies and gradients.

        :param particles: ``(B, N, *E)``
        :param target: what to draw from
        :return: particles, energies, and the gradients in ``extra``
        """
        return RefinerState(particles, *self._energy_and_grad(target, particles))

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, RefinerInfo]:
        """
        Take one step of unadjusted Langevin dynamics.

        :param state: with the gradients at its particles in ``extra``, or ``None`` there
        :param target: what to draw from
        :param tick: which step of how many
        :param generator: source of the noise
        :return: the next state, and how far the particles went
        """
        particles = gaussian_draw(*self.kernel(state, target, tick), generator)
        if tick.is_last:  # no step follows that needs the gradients
            energies, next_gradients = target.energy(particles), None
        else:
            energies, next_gradients = self._energy_and_grad(target, particles)
        return RefinerState(particles, energies, next_gradients), RefinerInfo.of_move(state.particles, particles)

    def deterministic(self) -> "Langevin":
        """
        Return the variant without noise.

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
        mean = state.particles + langevin_drift(self, gradients, step_size)
        return mean, value_at(self.noise_scale, tick.remaining) * math.sqrt(step_size)

    def _energy_and_grad(self, target: Target, particles: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return energy_and_grad(target.energy, particles, create_graph=self.differentiable and th.is_grad_enabled())


def langevin_drift(refiner: Any, gradients: th.Tensor, step_size: float | th.Tensor) -> th.Tensor:
    """
    ``-(ε/2) ∇E``, within the refiner's bounds.

    :param refiner: with ``max_grad_norm`` and ``max_displacement``
    :param gradients: ``(B, N, *E)``
    :param step_size: ``ε``, a number or ``(B, 1, *1)``
    :return: ``(B, N, *E)``
    """
    drift = -0.5 * step_size * clipped_gradients(gradients, refiner.max_grad_norm)
    return drift if refiner.max_displacement is None else drift.clamp(-refiner.max_displacement, refiner.max_displacement)


def clipped_gradients(gradients: th.Tensor, max_norm: float | None) -> th.Tensor:
    """
    Gradients whose norm is bounded.

    :param gradients: ``(B, N, *E)``
    :param max_norm: longest gradient of a particle, in Euclidean norm (``None``: any)
    :return: the same, with longer ones shortened
    """
    if max_norm is None:
        return gradients
    squares = gradients.flatten(2).square().sum(-1)
    squares = squares.clamp(min=th.finfo(squares.dtype).tiny)  # the root's derivative at 0 is infinite
    norm = squares.sqrt().clamp(min=max_norm)
    return gradients * (max_norm / norm).reshape(norm.shape + (1,) * (gradients.dim() - 2))


def check_steps(step_size: float | Schedule, max_grad_norm: float | None, max_displacement: float | None) -> None:
    """
    Check the arguments of steps along gradients.

    :param step_size: a positive number or a schedule
    :param max_grad_norm: a positive number, or ``None``
    :param max_displacement: a positive number, or ``None``
    :raises ValueError: if a number is out of range
    :raises TypeError: if something has the wrong type
    """
    check_schedule("step_size", step_size, minimum=0.0, strict=True)
    check_positive("max_grad_norm", max_grad_norm)
    check_positive("max_displacement", max_displacement)
