"""Weighted candidates, from which a head learns to draw from the Gibbs distribution."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch as th

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.checks import check_fraction, check_integer, check_number, check_positive, plain_fields
from sb3_energy.energies import squashed
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.proposals import draw_particles, mixture_log_prob
from sb3_energy.stats import gaussian_log_prob, importance_resample, log_mean_exp, noise_like
from sb3_energy.types import EnergyFn


class Candidates(NamedTuple):
    """
    Candidates and their weights.

    :param particles: ``(B, N, A)``, pre-tanh
    :param log_weights: ``(B, N)``, of the Gibbs distribution over the density they were drawn from
    """

    particles: th.Tensor
    log_weights: th.Tensor


class Kernels(NamedTuple):
    """
    A mixture of Gaussians of one width.

    :param means: ``(B, K, A)``
    :param std: ``(B, 1, A)``
    """

    means: th.Tensor
    std: th.Tensor

    def draw(self, generator: th.Generator | None) -> th.Tensor:
        """
        One draw of each kernel.

        :param generator: source of the noise
        :return: ``(B, K, A)``
        """
        return self.means + self.std * noise_like(self.means, generator)

    def of_the_other_half(self) -> "Kernels":
        """
        Swap the kernels between each observation's two halves of candidates.

        :return: the kernels with the rows ``2 b`` and ``2 b + 1`` exchanged
        """
        means, std = (part.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) for part in self)
        return Kernels(means, std)

    def log_prob(self, particles: th.Tensor) -> th.Tensor:
        """
        Evaluate the log-density of the equally weighted mixture of the kernels.

        :param particles: ``(B, N, A)``
        :return: ``(B, N)``
        """
        return log_mean_exp(gaussian_log_prob(particles.unsqueeze(2), self.means.unsqueeze(1), self.std.unsqueeze(1)), dim=2)


@dataclass(frozen=True)
class CandidateSettings:
    """
    The mixture the candidates are drawn from: the Gaussian base, the box, a kernel around the replayed action, and kernels
    where a gradient step takes the best of the others (resample, then move).

    Each weight divides by the density of the whole mixture (deterministic mixture weights: Veach and Guibas 1995, section
    3.3; with kernels at candidates, population Monte Carlo, Cappé et al. 2004), so the mixture changes the variance of the
    weights and not their law.

    The place of a kernel must not depend on the candidates that are weighed with it: a candidate always has its own kernel
    nearby, would be divided by too large a density, and the mean weight would miss the normaliser by a sixth. So there are
    two halves, and the kernels of one come from the other (cross-fitting, Chernozhukov et al. 2018): given either half, the
    weights of the other are unbiased.

    :param n_candidates: for each observation, an even number of at least 8
    :param refined_fraction: part of them that is refined, in [0, 1)
    :param replay_std: standard deviation of the kernel around the replayed action, pre-tanh (``None``: the
        replayed action is not used)
    :param step_size: of the refined ones' Langevin step, in units of the base's variance
    :raises ValueError: if a number is out of range
    :raises TypeError: if something has the wrong type
    """

    n_candidates: int = 16
    refined_fraction: float = 0.25
    replay_std: float | None = 0.2
    step_size: float = 0.1

    def __post_init__(self) -> None:
        plain_fields(self)
        check_integer("n_candidates", self.n_candidates, minimum=8)
        if self.n_candidates % 2 == 1:
            raise ValueError(f"n_candidates must be even, got {self.n_candidates}")
        check_fraction("refined_fraction", self.refined_fraction)
        check_positive("replay_std", self.replay_std)
        if self.n_proposals < 2:  # one from the base, and one from the box, without which weights have no bound
            raise ValueError(
                f"refined_fraction must leave 2 proposals in each half of n_candidates={self.n_candidates}, "
                f"got {self.refined_fraction!r}"
            )
        check_number("step_size", self.step_size, strict=True)

    @property
    def n_refined(self) -> int:
        """Of each half."""
        return int(self.n_candidates // 2 * self.refined_fraction)

    @property
    def n_replayed(self) -> int:
        """Of each half, where there is something to replay."""
        return 0 if self.replay_std is None else max(1, self.n_candidates // 16)

    @property
    def n_proposals(self) -> int:
        """Of each half, from the base and the box, where there is something to replay."""
        return self.n_candidates // 2 - self.n_refined - self.n_replayed


def draw_candidates(
    base: Gaussian,
    energy: EnergyFn,
    *,
    replayed: th.Tensor | None,
    settings: CandidateSettings,
    generator: th.Generator | None = None,
) -> Candidates:
    """
    Draw candidates for each observation and weigh them.

    :param base: the Gaussian
    :param energy: ``(B, N, A) -> (B, N)`` in the box, temperature included
    :param replayed: ``(B, A)`` actions of the replay buffer, pre-tanh, or ``None``
    :param settings: of what they are drawn
    :param generator: source of the noise (``None``: torch's global one)
    :return: candidates and their weights, without a graph
    """
    energy_fn, rows = squashed(energy), len(base.mean)
    halves = Gaussian(*(part.repeat_interleave(2, dim=0) for part in base))
    kernels = [] if replayed is None else _replay_kernels(replayed.repeat_interleave(2, dim=0), settings)

    def energies_of(particles: th.Tensor) -> th.Tensor:  # the halves of an observation lie one after the other
        return energy_fn(particles.reshape(rows, -1, particles.shape[2])).reshape(particles.shape[:2])

    with th.no_grad():
        n_refined = settings.n_refined
        n_proposals = settings.n_candidates // 2 - n_refined - sum(n for n, _ in kernels)
        particles = draw_particles(halves, n_proposals, 0.5, generator=generator)
        particles = th.cat([particles, *(kernel.draw(generator) for _, kernel in kernels)], dim=1)
        energies = energies_of(particles)
        if n_refined > 0:
            log_weights = -energies - _log_mixture(particles, halves, n_proposals, kernels=kernels)
            centres, _ = importance_resample(particles, log_weights, n_refined, generator=generator)
            moved = _moved(halves, energies_of, centres, settings.step_size)
            kernels.append((n_refined, moved.of_the_other_half()))
            refined = kernels[-1][1].draw(generator)
            particles, energies = th.cat([particles, refined], dim=1), th.cat([energies, energies_of(refined)], dim=1)
        log_weights = -energies - _log_mixture(particles, halves, n_proposals, kernels=kernels)
        return Candidates(particles.reshape(rows, -1, particles.shape[2]), log_weights.reshape(rows, -1))


def _replay_kernels(replayed: th.Tensor, settings: CandidateSettings) -> list[tuple[int, Kernels]]:
    if settings.replay_std is None:
        return []
    width = th.full_like(replayed, settings.replay_std).unsqueeze(1)
    return [(settings.n_replayed, Kernels(replayed.unsqueeze(1).expand(-1, settings.n_replayed, -1), width))]


def _moved(base: Gaussian, energy_fn: EnergyFn, centres: th.Tensor, step_size: float) -> Kernels:
    """The kernels of one preconditioned Langevin step, whose drift is bounded by the base's width."""
    std = base.std.unsqueeze(1).clamp(max=1.0)
    drift = -0.5 * step_size * std * energy_and_grad(energy_fn, centres)[1]
    return Kernels(centres + std * drift.clamp(-1.0, 1.0), step_size**0.5 * std)


def _log_mixture(particles: th.Tensor, base: Gaussian, n_proposals: int, *, kernels: list[tuple[int, Kernels]]) -> th.Tensor:
    n_uniform = math.floor(n_proposals * 0.5)
    total = n_proposals + sum(n for n, _ in kernels)
    parts = [mixture_log_prob(base, particles, n_uniform / n_proposals) + math.log(n_proposals / total)]
    parts += [kernel.log_prob(particles) + math.log(n / total) for n, kernel in kernels]
    return th.stack(parts).logsumexp(dim=0)
