"""Stein variational gradient descent."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.checks import check_bool, check_positive, plain_fields
from sb3_energy.refiners.langevin import check_steps, clipped_gradients
from sb3_energy.schedules import value_at
from sb3_energy.types import RefinerInfo, RefinerState, Target, Tick


@dataclass(frozen=True)
class SteinVariationalGradientDescent:
    """
    ``x_i ← x_i + ε φ(x_i)`` with ``φ(x_i) = (1/N) Σ_j [-k(x_j, x_i) ∇E(x_j) + ∇_{x_j} k(x_j, x_i)]``: the particles of an
    observation descend together and keep each other at a distance.
    SVGD (Liu and Wang 2016, algorithm 1), with ``k = exp(-|x - y|² / (2 σ²))`` and ``σ²`` from the median distance, as
    S2AC (Messaoud et al. 2024) refines a policy. Steps ask no random numbers; few particles cover less than the target
    has (its law is exact with infinitely many only).

    :param step_size: ``ε``, a number or a schedule
    :param bandwidth: ``σ`` (``None``: ``2 σ² = median(|x_i - x_j|²) / log(N + 1)`` over pairs, for each observation)
    :param max_grad_norm: longest gradient of a particle, in Euclidean norm (``None``: any)
    :param max_displacement: largest move of a coordinate in one step (``None``: any)
    :param max_step_norm: largest ``ε ‖∇φ‖_F`` of a particle, the Frobenius norm of the Jacobian that
        :meth:`direction_jacobian` says; where one of an observation's particles passes it, the step of that observation
        is shortened (``None``: any). Below 1 a step can be undone, up to the particle's own gradient which that Jacobian
        leaves out; S2AC's density of the particles assumes as much
    :param differentiable: whether steps keep their graph where gradients are enabled, so that what comes out can be
        differentiated with respect to the start and to the energy's parameters, as S2AC trains through its steps. A
        policy acts without gradients, and then no graph is kept
    :param shuffle: whether the particles change places after the last step, so that the first one is a draw wherever
        each of them started
    :param max_curvature: largest ``ε L``, where ``L²`` is the mean over pairs of particles of ``|∇E(x_i) - ∇E(x_j)|² / |x_i -
        x_j|²``, none of which counts for more than a hundred times their median; the step of an observation that passes it is
        shortened (``None``: any). A descent of curvature ``L`` diverges from ``ε L = 2`` on
    :raises ValueError: if a number is out of range
    :raises TypeError: if something has the wrong type
    """

    step_size: float | Schedule = 0.5
    bandwidth: float | None = None
    max_grad_norm: float | None = None
    max_displacement: float | None = 1.0
    shuffle: bool = True
    max_step_norm: float | None = None
    differentiable: bool = False
    max_curvature: float | None = 2.0

    exact: ClassVar[bool] = False
    resamples: ClassVar[bool] = True
    default_steps: ClassVar[int] = 10
    default_particles: ClassVar[int] = 16
    max_steps: ClassVar[int | None] = None
    estimators: ClassVar[tuple[str, ...]] = ("base", "soft_value", "smc", "trace")
    head: ClassVar[str | None] = None
    search_space: ClassVar[dict[str, Any]] = dict(steps=(1, 10), particles_pow=(2, 5), step_size=(1e-2, 1.0))

    def __post_init__(self) -> None:
        plain_fields(self)
        check_steps(self.step_size, self.max_grad_norm, self.max_displacement)
        check_positive("bandwidth", self.bandwidth)
        check_positive("max_curvature", self.max_curvature)
        check_positive("max_step_norm", self.max_step_norm)
        for name in ("shuffle", "differentiable"):
            check_bool(name, getattr(self, name))

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
        Take one step of Stein variational gradient descent.

        :param state: with the gradients at its particles in ``extra``
        :param target: what to draw from
        :param tick: which step of how many
        :param generator: source of the last step's permutation
        :return: the next state, and how far the particles went
        """
        displacement = self._step_size(state, tick) * self.direction(state.particles, state.extra)
        if self.max_displacement is not None:
            displacement = displacement.clamp(-self.max_displacement, self.max_displacement)
        particles = state.particles + displacement
        info = RefinerInfo.of_move(state.particles, particles)
        if not tick.is_last:
            return RefinerState(particles, *self._energy_and_grad(target, particles)), info
        if self.shuffle:
            particles = _shuffled(particles, generator)
        return RefinerState(particles, target.energy(particles)), info

    def deterministic(self) -> "SteinVariationalGradientDescent":
        """
        Return the variant that uses no random numbers.

        :return: the same steps, and no permutation
        """
        return replace(self, shuffle=False)

    def direction(self, particles: th.Tensor, gradients: th.Tensor) -> th.Tensor:
        """
        Compute the Stein variational direction: kernel-weighted scores plus repulsion.

        :param particles: ``(B, N, *E)``
        :param gradients: ``(B, N, *E)`` of the energy
        :return: ``φ``, ``(B, N, *E)``
        """
        flat, scores = particles.flatten(2), -clipped_gradients(gradients, self.max_grad_norm).flatten(2)
        kernel, variance = rbf_kernel(flat, self.bandwidth)
        # ∇_{x_j} k_ij = k_ij (x_i - x_j) / σ²
        repulsion = (flat * kernel.sum(dim=2, keepdim=True) - kernel @ flat) / variance
        return ((kernel @ scores + repulsion) / flat.shape[1]).reshape(particles.shape)

    def direction_jacobian(self, particles: th.Tensor, gradients: th.Tensor) -> th.Tensor:
        """
        ``∂φ(x_i)/∂x_i`` with the other particles, the bandwidth and the gradients held fixed::

            (1/N) Σ_{j≠i} k_ij [-s_j (x_i - x_j)ᵀ/σ² + I/σ² - (x_i - x_j)(x_i - x_j)ᵀ/σ⁴],  s_j = -∇E(x_j)

        Its trace is what S2AC's closed form of the density adds up (Messaoud et al. 2024, theorem 3.3). As there, the
        particle's own gradient is left out, which would add ``-∇²E(x_i)/N`` and ask for second derivatives: a particle
        alone has a Jacobian of 0 here.

        :param particles: ``(B, N, *E)``
        :param gradients: ``(B, N, *E)`` of the energy
        :return: ``(B, N, D, D)``, rows of the direction, columns of the particle, ``D`` the event's size
        """
        flat, scores = particles.flatten(2), -clipped_gradients(gradients, self.max_grad_norm).flatten(2)
        kernel, variance = rbf_kernel(flat, self.bandwidth)
        others = kernel * (1.0 - th.eye(flat.shape[1], device=flat.device, dtype=flat.dtype)) / variance
        apart = flat.unsqueeze(2) - flat.unsqueeze(1)
        pulled = scores.unsqueeze(1) + apart / variance.unsqueeze(-1)
        outer = th.einsum("bij,bijc,bijd->bicd", others, pulled, apart)
        identity = th.eye(flat.shape[2], device=flat.device, dtype=flat.dtype)
        return (others.sum(dim=2)[..., None, None] * identity - outer) / flat.shape[1]

    def step_jacobian(self, state: RefinerState, tick: Tick) -> th.Tensor:
        """
        Compute the Jacobian of each particle's step with respect to that particle.

        :param state: with the gradients at its particles in ``extra``
        :param tick: which step of how many
        :return: ``ε ∂φ(x_i)/∂x_i``, ``(B, N, D, D)``, of the step that follows, as :meth:`direction_jacobian` has it
        """
        step_size = self._step_size(state, tick)
        if isinstance(step_size, th.Tensor):
            step_size = step_size.reshape(-1, 1, 1, 1)
        return step_size * self.direction_jacobian(state.particles, state.extra)

    def own_share(self, state: RefinerState, tick: Tick) -> float | th.Tensor:
        """
        The factor of ``-∇²E(x_i)`` in the Jacobian of a step, which :meth:`step_jacobian` leaves out.

        :param state: with the gradients at its particles in ``extra``
        :param tick: which step of how many
        :return: ``ε / N``, a number or, where steps are bounded, ``(B, 1)``
        """
        step_size = self._step_size(state, tick)
        if isinstance(step_size, th.Tensor):
            step_size = step_size.reshape(-1, 1)
        return step_size / state.particles.shape[1]

    def _step_size(self, state: RefinerState, tick: Tick) -> float | th.Tensor:
        step_size: Any = value_at(self.step_size, tick.remaining)
        over_event = (-1,) + (1,) * (state.particles.dim() - 1)
        if self.max_curvature is not None and state.particles.shape[1] > 1:
            gradients = clipped_gradients(state.extra, self.max_grad_norm)
            curvature = curvature_between(state.particles.flatten(2), gradients.flatten(2)).reshape(over_event)
            longest = self.max_curvature / curvature.clamp(min=self.max_curvature / step_size)
            step_size = longest.clamp(max=step_size)
        if self.max_step_norm is None:
            return step_size
        norms = self.direction_jacobian(state.particles, state.extra).flatten(2).norm(dim=2)
        step_norm = step_size * norms.amax(dim=1).reshape(over_event)
        part = self.max_step_norm / step_norm.clamp(min=self.max_step_norm)
        return step_size * th.where(step_norm > self.max_step_norm, part, 1.0)

    def _energy_and_grad(self, target: Target, particles: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return energy_and_grad(target.energy, particles, create_graph=self.differentiable and th.is_grad_enabled())


MOST_OF_MEDIAN = 100.0


def curvature_between(particles: th.Tensor, gradients: th.Tensor) -> th.Tensor:
    """
    Root mean square of an energy's curvature along the lines between particles, ``|∇E(x_i) - ∇E(x_j)| / |x_i - x_j|``. One
    particle on a cliff must not hold up all others: no square counts for more than a hundred times their median.

    :param particles: ``(B, N, D)``, at least two
    :param gradients: ``(B, N, D)`` of the energy
    :return: ``(B,)``; pairs that have met are left out
    """
    apart, change = (
        (part.detach().unsqueeze(2) - part.detach().unsqueeze(1)).square().sum(-1) for part in (particles, gradients)
    )
    met = apart <= th.finfo(apart.dtype).eps
    squares = (change / apart.masked_fill(met, 1.0)).masked_fill(met, th.nan).flatten(1)
    most = MOST_OF_MEDIAN * squares.nanmedian(dim=1, keepdim=True).values
    return squares.minimum(most).nanmean(dim=1).nan_to_num(nan=0.0).sqrt()


def rbf_kernel(particles: th.Tensor, bandwidth: float | None) -> tuple[th.Tensor, th.Tensor]:
    """
    Evaluate the RBF kernel between all pairs of particles.

    :param particles: ``(B, N, D)``
    :param bandwidth: ``σ``, or ``None`` for the median's
    :return: ``exp(-|x_i - x_j|² / (2 σ²))``, ``(B, N, N)``, and ``σ²``, ``(B, 1, 1)``
    """
    squares = (particles.unsqueeze(2) - particles.unsqueeze(1)).square().sum(-1)
    n = particles.shape[1]
    if bandwidth is not None:
        variance = squares.new_full((len(particles), 1, 1), bandwidth**2)
    elif n == 1:
        variance = squares.new_ones((len(particles), 1, 1))  # a particle alone is its own neighbour, however wide
    else:
        upper = th.triu_indices(n, n, offset=1, device=particles.device)
        median = squares[:, upper[0], upper[1]].median(dim=1).values.reshape(-1, 1, 1)
        # Particles that have met, or all stand still at one point, must not divide by zero
        variance = (median / (2.0 * math.log(n + 1.0))).clamp(min=th.finfo(squares.dtype).eps)
    return th.exp(-squares / (2.0 * variance)), variance


def _shuffled(particles: th.Tensor, generator: th.Generator | None) -> th.Tensor:
    order = th.rand(particles.shape[:2], generator=generator, device=particles.device).argsort(dim=1)
    return particles[th.arange(len(order), device=order.device).unsqueeze(1), order]
