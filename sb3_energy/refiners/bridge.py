"""The way from a proposal to a target: tempered energies between the two, and how far along it particles may go at once."""

from typing import Any, NamedTuple

import torch as th

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.stats import effective_sample_size, log_mean_exp, shuffled, systematic_resample
from sb3_energy.types import Target

SMALLEST_PART = -8.0
"""Logarithm to the base 10 of the smallest part of the way that is left which is looked at."""


class Points(NamedTuple):
    """
    Particles, with everything that the energies on the way ``(1 - β) (-log q) + β E`` are made of: ``β`` may change without
    another evaluation.

    :param particles: ``(B, N, *E)``
    :param energies: ``(B, N)``, ``E``
    :param surprisals: ``(B, N)``, ``-log q``
    :param gradients: ``(B, N, *E)`` of ``E`` (``None``: it has none)
    :param surprisal_gradients: ``(B, N, *E)`` of ``-log q`` (``None`` where ``E`` has none)
    """

    particles: th.Tensor
    energies: th.Tensor
    surprisals: th.Tensor
    gradients: th.Tensor | None = None
    surprisal_gradients: th.Tensor | None = None

    @classmethod
    def at(cls, particles: th.Tensor, target: Target, has_gradient: bool) -> "Points":
        """
        Evaluate target and proposal.

        :param particles: ``(B, N, *E)``
        :param target: with its ``proposal``, ``-log q``
        :param has_gradient: whether to evaluate the gradients too
        :return: the points
        """
        assert target.proposal is not None
        if not has_gradient:
            return cls(particles, target.energy(particles), target.proposal(particles))
        energies, gradients = energy_and_grad(target.energy, particles)
        surprisals, slopes = energy_and_grad(target.proposal, particles)
        return cls(particles, energies, surprisals, gradients, slopes)

    @property
    def has_gradient(self) -> bool:
        """Whether the gradients are known."""
        return self.gradients is not None

    def heights(self, beta: th.Tensor) -> th.Tensor:
        """
        The energies on the way.

        :param beta: ``(B, 1)``, above 0
        :return: ``(B, N)``
        """
        return (1.0 - beta) * self.surprisals + beta * self.energies

    def slopes(self, beta: th.Tensor) -> th.Tensor:
        """
        Their gradients.

        :param beta: ``(B, 1)``, above 0
        :return: ``(B, N, *E)``, 0 where the energy has none
        """
        if self.gradients is None or self.surprisal_gradients is None:
            return th.zeros_like(self.particles)
        beta = over_event(beta, self.particles)
        return (1.0 - beta) * self.surprisal_gradients + beta * self.gradients

    def taken(self, index: th.Tensor) -> "Points":
        """
        Some of the points.

        :param index: ``(B, N)``
        :return: those, in that order
        """
        rows = th.arange(len(index), device=index.device).unsqueeze(1)
        parts: Any = [None if part is None else part[rows, index] for part in self]
        return Points(*parts)

    def where(self, chosen: th.Tensor, other: "Points") -> "Points":
        """
        These points where they are chosen, and others elsewhere.

        :param chosen: ``(B, N)``
        :param other: as many points
        :return: as many points
        """
        pairs = zip(self, other, strict=True)
        parts: Any = [None if a is None or b is None else th.where(over_event(chosen, a), a, b) for a, b in pairs]
        return Points(*parts)


def over_event(x: th.Tensor, like: th.Tensor) -> th.Tensor:
    """
    Give a tensor of particles as many dimensions as another.

    :param x: ``(B, n)``
    :param like: ``(B, N, *E)``
    :return: ``(B, n, *1)``
    """
    return x.reshape(x.shape + (1,) * (like.dim() - 2))


def spread(particles: th.Tensor, log_weights: th.Tensor, n_groups: int) -> th.Tensor:
    """
    The variance of weighted particles, all groups of which weigh the same.

    :param particles: ``(B, N, *E)``
    :param log_weights: ``(B, N)``, up to a constant for each group
    :param n_groups: how many equal groups there are, one after the other
    :return: ``(B, 1, *E)``
    """
    weights = _alive(log_weights.unflatten(1, (n_groups, -1))).softmax(dim=2).flatten(1) / n_groups
    weights = over_event(weights, particles)
    mean = (weights * particles).sum(dim=1, keepdim=True)
    return (weights * (particles - mean).square()).sum(dim=1, keepdim=True)


def increment(rates: th.Tensor, room: th.Tensor, ess_fraction: float) -> th.Tensor:
    """
    How far ``β`` may go: as far as in each group the weights ``exp(Δβ (log p - log q))`` are worth a part of the particles.
    The effective sample size falls as ``Δβ`` rises, so the place is searched by sections, each observation at its own (as
    Jasra et al. 2011 by bisection).

    :param rates: ``(B, G, n)`` of ``G`` groups, ``-log q - E``, minus infinity where the energy forbids a particle
    :param room: ``(B, 1)``, what is left of the way
    :param ess_fraction: part of a group's particles that are not forbidden
    :return: ``(B, 1)``, ``Δβ``, exactly ``room`` where all of it may be gone at once
    """
    least = ess_fraction * rates.isfinite().sum(dim=2)

    def is_kept(rises: th.Tensor) -> th.Tensor:  # (B, S) -> (B, S)
        log_weights = over_event(rises, rises.new_empty(1, 1, 1, 1)) * rates.unsqueeze(1)
        sizes = effective_sample_size(log_weights.flatten(0, 2)).reshape(log_weights.shape[:3])
        return ((sizes >= least.unsqueeze(1)) | (least == 0.0).unsqueeze(1)).all(dim=2)

    low, width = th.full_like(room, SMALLEST_PART), -SMALLEST_PART
    sections = th.arange(1, 9, device=rates.device, dtype=rates.dtype) / 8.0
    for _ in range(3):
        kept = is_kept(room * 10.0 ** (low + width * sections))
        width /= 8.0
        low = low + width * kept.sum(dim=1, keepdim=True)
    return th.where(is_kept(room), room, room * 10.0**low)


def resampled_in_groups(
    log_weights: th.Tensor, group_weights: th.Tensor, joins: th.Tensor, generator: th.Generator | None
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """
    Resample particles systematically, each group alone, or all together in a random order.

    :param log_weights: ``(B, N)`` of ``G`` equal groups, one after the other
    :param group_weights: ``(B, G)``, logarithms of the weights that the groups have
    :param joins: ``(B, 1)``, where all are resampled together; they also are where the energy forbids a whole group
    :param generator: source of the draws (``None``: torch's global one)
    :return: indices ``(B, N)``; the groups' new log-weights, the mean of all where they have been joined; the effective sample
        size ``(B,)``, the sum over groups where they have not
    """
    n_rows, n_groups = group_weights.shape
    in_groups = log_weights.unflatten(1, (n_groups, -1))
    n = in_groups.shape[2]
    offsets = th.rand((n_rows, 1 + n_groups), generator=generator, device=log_weights.device, dtype=log_weights.dtype)
    alone = _systematic(_alive(in_groups).flatten(0, 1), offsets[:, 1:].reshape(-1, 1)).reshape(n_rows, n_groups, n)
    alone = (alone + n * th.arange(n_groups, device=alone.device).unsqueeze(1)).flatten(1)
    joint = (in_groups + group_weights.unsqueeze(2)).flatten(1)
    together = shuffled(_systematic(joint, offsets[:, :1]), generator)  # it rises, and the first particle is acted
    new = group_weights + log_mean_exp(in_groups, dim=2)
    joins = joins | new.isneginf().any(dim=1, keepdim=True)
    sizes = effective_sample_size(_alive(in_groups).flatten(0, 1)).reshape(n_rows, n_groups).sum(dim=1)
    return (
        th.where(joins, together, alone),
        th.where(joins, log_mean_exp(new, dim=1).unsqueeze(1), new),
        th.where(joins.squeeze(1), effective_sample_size(joint), sizes),
    )


def _systematic(log_weights: th.Tensor, offset: th.Tensor) -> th.Tensor:
    return systematic_resample(log_weights.unsqueeze(2), log_weights, log_weights.shape[1], offset=offset)[1]


def _alive(log_weights: th.Tensor) -> th.Tensor:
    """Weights of groups ``(B, G, n)``, equal ones where all of a group are 0."""
    return th.where(log_weights.isneginf().all(dim=2, keepdim=True), 0.0, log_weights)
