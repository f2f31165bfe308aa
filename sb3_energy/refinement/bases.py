"""Bases: distributions of events at some observations, from which a refinement draws its proposals.

All of them live in pre-tanh space: ``u`` stands for the event ``a = tanh(u)`` in the box ``[-1, 1]^D``, and log-densities are
those of ``u``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch as th

from sb3_energy.autodiff import jacobian
from sb3_energy.checks import check_choice, check_integer
from sb3_energy.refiners import Flow, refined_particles
from sb3_energy.refiners.flow import SOLVERS
from sb3_energy.stats import (
    draw_indices,
    gaussian_log_prob,
    log_tanh_jacobian,
    noise_like,
    normal_quantiles,
    uniform_log_prob,
)
from sb3_energy.steps import steps, zero_energy
from sb3_energy.types import Target, VelocityFn

LARGEST_ACTION = 1.0 - 1e-6
"""The largest action whose atanh a 32-bit float can tell from its neighbours."""


def latent(actions: th.Tensor) -> th.Tensor:
    """
    The inverse of ``tanh``, finite at the walls of the box too.

    :param actions: in the box, any shape
    :return: the same pre-tanh
    """
    return th.atanh(actions.clamp(-LARGEST_ACTION, LARGEST_ACTION))


class Base(Protocol):
    """
    A distribution over pre-tanh events of shape ``*E`` at each of ``B`` observations. One of your own subclasses this and
    has at least ``sample`` and ``log_prob``.
    """

    @property
    def has_density(self) -> bool:
        """Whether :meth:`log_prob` is known. Without it nothing can be weighed: ``n_particles=1``, and not ``snis``."""
        return True

    def sample(self, n: int, generator: th.Generator | None = None) -> th.Tensor:
        """
        Independent draws.

        :param n: how many for each observation, at least 0
        :param generator: source of the noise (``None``: torch's global one)
        :return: ``(B, n, *E)``
        """
        ...

    def log_prob(self, particles: th.Tensor) -> th.Tensor:
        """
        The log-density.

        :param particles: ``(B, N, *E)``
        :return: ``(B, N)``
        :raises ValueError: if it is not known
        """
        ...

    def quantiles(self, n: int) -> th.Tensor:
        """
        Fixed points that are spread like the base, the most central one first: where a refinement without noise starts. By
        default draws with a fixed seed.

        :param n: how many for each observation
        :return: ``(B, n, *E)``, always the same; torch's global generator is not asked
        """
        return self.sample(n, th.Generator(self.sample(0).device).manual_seed(0))

    def frame(self) -> "Gaussian | None":
        """
        A Gaussian at about the same place and of about the same width, whose standard deviation is the unit of steps that
        are preconditioned.

        :return: the Gaussian; ``None``: there is none, and ``precondition=True`` raises
        """
        return None


class Gaussian(NamedTuple):
    """
    A Gaussian of independent coordinates pre-tanh, such as SAC's actor.

    :param mean: ``(B, *E)``
    :param std: ``(B, *E)``
    """

    mean: th.Tensor
    std: th.Tensor

    @property
    def has_density(self) -> bool:
        """It is known."""
        return True

    def sample(self, n: int, generator: th.Generator | None = None) -> th.Tensor:
        """
        Draw particles from the Gaussian.

        :param n: how many for each observation
        :param generator: source of the noise (``None``: torch's global one)
        :return: ``(B, n, *E)``
        """
        mean = self.mean.unsqueeze(1)
        return mean + self.std.unsqueeze(1) * noise_like(mean.expand(-1, n, *mean.shape[2:]), generator)

    def log_prob(self, particles: th.Tensor) -> th.Tensor:
        """
        Evaluate the Gaussian's log-density at particles.

        :param particles: ``(B, N, *E)``
        :return: ``(B, N)``
        """
        mean, std = self.mean.flatten(1).unsqueeze(1), self.std.flatten(1).unsqueeze(1)
        return gaussian_log_prob(particles.flatten(2), mean, std)

    def quantiles(self, n: int) -> th.Tensor:
        """
        Place particles deterministically at quantiles of the Gaussian.

        :param n: how many for each observation
        :return: ``(B, n, *E)``, the first one the mean
        """
        return self.mean.unsqueeze(1) + self.std.unsqueeze(1) * normal_quantiles(n, self.mean)

    def frame(self) -> "Gaussian":
        """
        Return the mean and standard deviation to precondition with, which are its own.

        :return: itself
        """
        return self


NoiseFn = Callable[[th.Tensor], th.Tensor]
"""Noise of the shape, device and type of what it is given, ``(B, n, *E)``."""


class GaussianOfNoise(Gaussian):
    """A Gaussian whose draws are made of noise that somebody else gives, and is not of a generator. Made by :meth:`of`."""

    noise: NoiseFn

    @classmethod
    def of(cls, gaussian: Gaussian, noise: NoiseFn) -> "GaussianOfNoise":
        """
        Give a Gaussian a source of noise.

        :param gaussian: mean and standard deviation ``(B, *E)``
        :param noise: the source
        :return: the same Gaussian with this source
        """
        found = cls(*gaussian)
        found.noise = noise
        return found

    def sample(self, n: int, generator: th.Generator | None = None) -> th.Tensor:
        """
        Make particles of the noise.

        :param n: how many for each observation
        :param generator: not asked
        :return: ``(B, n, *E)``
        """
        mean = self.mean.unsqueeze(1)
        return mean + self.std.unsqueeze(1) * self.noise(mean.expand(-1, n, *mean.shape[2:]))


@dataclass(frozen=True, eq=False)
class UniformBase(Base):
    """
    Uniform on the box.

    :param like: ``(B, *E)``, for shape, device and type
    """

    like: th.Tensor

    def sample(self, n: int, generator: th.Generator | None = None) -> th.Tensor:
        """
        Draw actions uniformly on the box and map them to pre-tanh particles.

        :param n: how many for each observation
        :param generator: source of the noise (``None``: torch's global one)
        :return: ``(B, n, *E)``
        """
        shape = (len(self.like), n, *self.like.shape[1:])
        return latent(2.0 * th.rand(shape, generator=generator, device=self.like.device, dtype=self.like.dtype) - 1.0)

    def log_prob(self, particles: th.Tensor) -> th.Tensor:
        """
        Evaluate the pre-tanh log-density of the uniform distribution on the box.

        :param particles: ``(B, N, *E)``
        :return: ``(B, N)``
        """
        return uniform_log_prob(particles)

    def quantiles(self, n: int) -> th.Tensor:
        """
        Place particles deterministically at quantiles of the uniform distribution.

        :param n: how many for each observation
        :return: ``(B, n, *E)``, the first one the centre of the box
        """
        points = latent(th.erf(normal_quantiles(n, self.like) / math.sqrt(2.0)))
        return points.expand(len(self.like), *points.shape[1:])

    def frame(self) -> Gaussian:
        """
        Match the distribution's pre-tanh moments with a Gaussian to precondition with.

        :return: its own moments: a mean of 0, and a standard deviation of ``π / √12``
        """
        return Gaussian(th.zeros_like(self.like), th.full_like(self.like, math.pi / math.sqrt(12.0)))


@dataclass(frozen=True, eq=False)
class NoisyActions(Base):
    """
    A deterministic actor with noise: in the box, a Gaussian around its action that is truncated at the walls, as TD3
    (Fujimoto et al. 2018) explores but for the clipping, which has no density. Noise that is added pre-tanh is a
    :class:`Gaussian` with the mean :func:`latent`\\ ``(actions)``.

    :param actions: ``(B, *E)`` in the box
    :param std: standard deviation before the truncation, a number
    :raises ValueError: if it is not positive
    """

    actions: th.Tensor
    std: float

    def __post_init__(self) -> None:
        if not 0.0 < self.std < math.inf:
            raise ValueError(f"std must be positive and finite, got {self.std!r}")

    def _levels(self) -> tuple[th.Tensor, th.Tensor]:
        """Of the Gaussian's distribution function at the lower wall and between the walls, ``(B, 1, *E)``."""
        actions = self.actions.unsqueeze(1)
        lower = th.special.ndtr((-1.0 - actions) / self.std)
        return lower, th.special.ndtr((1.0 - actions) / self.std) - lower

    def _at(self, levels: th.Tensor) -> th.Tensor:
        lower, mass = self._levels()
        smallest = th.finfo(levels.dtype).eps  # at levels of 0 and 1 quantiles are infinite
        noise = th.special.ndtri((lower + mass * levels).clamp(smallest, 1.0 - smallest))
        return latent(self.actions.unsqueeze(1) + self.std * noise)

    def sample(self, n: int, generator: th.Generator | None = None) -> th.Tensor:
        """
        Draw noisy actions in the box and map them to pre-tanh particles.

        :param n: how many for each observation
        :param generator: source of the noise (``None``: torch's global one)
        :return: ``(B, n, *E)``
        """
        shape = (len(self.actions), n, *self.actions.shape[1:])
        return self._at(th.rand(shape, generator=generator, device=self.actions.device, dtype=self.actions.dtype))

    def log_prob(self, particles: th.Tensor) -> th.Tensor:
        """
        Evaluate the pre-tanh log-density of the noisy actions.

        :param particles: ``(B, N, *E)``
        :return: ``(B, N)``
        """
        centres = self.actions.unsqueeze(1).flatten(2)
        in_box = gaussian_log_prob(th.tanh(particles).flatten(2), centres, self.std)
        return in_box - self._levels()[1].log().flatten(2).sum(-1) + log_tanh_jacobian(particles)

    def quantiles(self, n: int) -> th.Tensor:
        """
        Place particles deterministically at quantiles of the noise.

        :param n: how many for each observation
        :return: ``(B, n, *E)``, the first one the action without noise
        """
        spread = self._at(th.special.ndtr(normal_quantiles(n, self.actions)[:, 1:]))
        return th.cat([latent(self.actions).unsqueeze(1), spread], dim=1)

    def frame(self) -> Gaussian:
        """
        Linearise ``tanh`` at the action to get a pre-tanh Gaussian to precondition with.

        :return: the action, with the standard deviation divided by the slope of ``tanh``
        """
        centre = latent(self.actions)
        return Gaussian(centre, self.std / (1.0 - th.tanh(centre).square()))


@dataclass(frozen=True, eq=False)
class MixtureBase(Base):
    """
    A mixture of bases.

    :param bases: at the same observations, with the same event
    :param weights: of each, positive; they need not add up to 1 (``None``: equal ones)
    :raises ValueError: if there is no base, or the weights do not fit
    """

    bases: tuple[Base, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        weights = (1.0,) * len(self.bases) if self.weights is None else self.weights
        if not weights or len(weights) != len(self.bases) or not min(weights) > 0.0:
            raise ValueError(f"weights must be one positive number for each of {len(self.bases)} bases, got {self.weights!r}")

    def _shares(self) -> list[float]:
        weights = (1.0,) * len(self.bases) if self.weights is None else self.weights
        return [weight / sum(weights) for weight in weights]

    @property
    def has_density(self) -> bool:
        """Whether all parts have one."""
        return all(base.has_density for base in self.bases)

    def sample(self, n: int, generator: th.Generator | None = None) -> th.Tensor:
        """
        Draw particles from the mixture, choosing a part for each by weight.

        :param n: how many for each observation
        :param generator: source of the noise (``None``: torch's global one)
        :return: ``(B, n, *E)``
        """
        drawn = th.stack([base.sample(n, generator) for base in self.bases])
        if n == 0:
            return drawn[0]
        shares = drawn.new_tensor(self._shares()).expand(drawn.shape[1], -1)
        index = draw_indices(shares, n, generator)
        rows, places = (th.arange(size, device=drawn.device) for size in index.shape)
        return drawn[index, rows.unsqueeze(1), places]

    def log_prob(self, particles: th.Tensor) -> th.Tensor:
        """
        Evaluate the mixture's log-density at particles.

        :param particles: ``(B, N, *E)``
        :return: ``(B, N)``
        :raises ValueError: if a part has no density
        """
        parts = zip(self.bases, self._shares(), strict=True)
        return th.stack([base.log_prob(particles) + math.log(share) for base, share in parts]).logsumexp(dim=0)

    def quantiles(self, n: int) -> th.Tensor:
        """
        Place particles deterministically at quantiles of the parts.

        :param n: how many for each observation
        :return: ``(B, n, *E)``, those of the parts in turn, whatever their weights
        """
        return th.stack([base.quantiles(n) for base in self.bases], dim=2).flatten(1, 2)[:, :n]

    def frame(self) -> Gaussian | None:
        """
        Match the moments of the mixture with a Gaussian to precondition with.

        :return: the moments of the mixture of the parts' frames; ``None`` where a part has none
        """
        frames = [base.frame() for base in self.bases]
        known = [(frame, share) for frame, share in zip(frames, self._shares(), strict=True) if frame is not None]
        if len(known) < len(frames):
            return None
        mean = th.stack([share * frame.mean for frame, share in known]).sum(0)
        variances = [share * (frame.std.square() + (frame.mean - mean).square()) for frame, share in known]
        return Gaussian(mean, th.stack(variances).sum(0).sqrt())


@dataclass(frozen=True, eq=False)
class FlowBase(Base):
    """
    Where a velocity field takes the draws of another base from time 0 to time 1, pre-tanh.

    The density follows the field back (Chen et al. 2018, theorem 1), by the logarithm of the determinant of each step as it is
    computed: a particle costs as many derivatives as the event has coordinates. The way back is the inverse of the way there
    up to the solver's error.

    :param start: at time 0
    :param velocity: bound to the observations
    :param n_steps: how many steps of the solver
    :param solver: ``"euler"``, ``"heun"`` or ``"rk4"``
    :param has_density: whether the density is to be known; without it the base only gives samples
    :raises ValueError: if there is no such solver, or a number is out of range
    :raises TypeError: if a number is not an integer
    """

    start: Base
    velocity: VelocityFn
    n_steps: int = 8
    solver: str = "rk4"
    has_density: bool = True

    def __post_init__(self) -> None:
        check_choice("solver", self.solver, sorted(SOLVERS))
        check_integer("n_steps", self.n_steps, minimum=1)

    def sample(self, n: int, generator: th.Generator | None = None) -> th.Tensor:
        """
        Draw from the start distribution and transport the draws along the flow.

        :param n: how many for each observation
        :param generator: source of the start's noise (``None``: torch's global one)
        :return: ``(B, n, *E)``, without a graph
        """
        return self._moved(self.start.sample(n, generator))

    def log_prob(self, particles: th.Tensor) -> th.Tensor:
        """
        Evaluate the flow's log-density by integrating back to the start and summing log-determinants.

        :param particles: ``(B, N, *E)``
        :return: ``(B, N)``, without a graph
        :raises ValueError: if the density is not to be known
        """
        if not self.has_density:
            raise ValueError("this FlowBase has no density (has_density=False), which weights of its particles need")
        back, flow = Target(zero_energy, velocity=partial(_reversed, self.velocity)), Flow(self.solver)
        with th.no_grad():
            ends, log_volume = particles, th.zeros((), device=particles.device, dtype=particles.dtype)
            for before, after, _, tick in steps(flow, particles, back, n_steps=self.n_steps):
                transport = partial(flow.transport, target=back, tick=tick)
                log_volume = log_volume + th.linalg.slogdet(jacobian(transport, before.particles)).logabsdet
                ends = after.particles
            return self.start.log_prob(ends) + log_volume

    def quantiles(self, n: int) -> th.Tensor:
        """
        Transport the start distribution's quantiles along the flow.

        :param n: how many for each observation
        :return: ``(B, n, *E)``, where the start's go
        """
        return self._moved(self.start.quantiles(n))

    def _moved(self, particles: th.Tensor) -> th.Tensor:
        if particles.shape[1] == 0:
            return particles
        target = Target(zero_energy, velocity=self.velocity)
        return refined_particles(Flow(self.solver), particles, target, n_steps=self.n_steps)


def _reversed(velocity: VelocityFn, x: th.Tensor, time: th.Tensor) -> th.Tensor:
    return -velocity(x, 1.0 - time)
