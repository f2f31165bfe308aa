"""Counter-examples: actions that an energy is compared at with those of the expert, held fixed, in a box a little wider."""

import math
from typing import NamedTuple

import torch as th

from sb3_energy.energies import folded, reflected, standardized
from sb3_energy.networks import GaussianMixture
from sb3_energy.refiners import refined_particles
from sb3_energy.types import EnergyFn, Refiner, Target


class Negatives(NamedTuple):
    """
    Counter-examples of ``B`` observations.

    :param points: ``(B, M, A)``, without a graph
    :param log_prob: ``(B, M)`` log-density that they were drawn from (``None``: it is not known)
    :param positive_log_prob: ``(B, 1)`` the same at the examples
    """

    points: th.Tensor
    log_prob: th.Tensor | None = None
    positive_log_prob: th.Tensor | None = None


def draw_uniform(like: th.Tensor, n: int, width: float) -> th.Tensor:
    """
    Draw uniformly from ``[-width, width]^A``.

    :param like: ``(B, ..., A)``, for shape, device and type
    :param n: how many for each observation
    :param width: half of the box's size
    :return: ``(B, n, A)``
    """
    drawn = th.rand((len(like), n, like.shape[-1]), device=like.device, dtype=like.dtype)
    return width * (2.0 * drawn - 1.0)


def uniform_negatives(actions: th.Tensor, n: int, width: float) -> Negatives:
    """
    Uniform counter-examples and their density.

    :param actions: ``(B, 1, A)`` the examples
    :param n: how many for each observation
    :param width: half of the box's size
    :return: the counter-examples
    """
    points = draw_uniform(actions, n, width)
    return Negatives(points, _uniform_log_prob(points, width), _uniform_log_prob(actions, width))


def proposed_negatives(actions: th.Tensor, proposal: GaussianMixture, n: int, n_uniform: int, width: float) -> Negatives:
    """
    Draws of a learned proposal, some of which are uniform in the box: without these nothing would be learned of actions that
    the proposal has ruled out. The density is that of the mixture of both, in their numbers.

    :param actions: ``(B, 1, A)`` the examples
    :param proposal: at the same observations
    :param n: how many for each observation
    :param n_uniform: how many of them are uniform
    :param width: half of the box's size
    :return: the counter-examples
    """
    with th.no_grad():
        points = proposal.sample(n - n_uniform)
        if n_uniform == 0:
            return Negatives(points, proposal.log_prob(points), proposal.log_prob(actions))
        points = th.cat([points, draw_uniform(actions, n_uniform, width)], dim=1)
        share = n_uniform / n

        def log_prob(x: th.Tensor) -> th.Tensor:
            parts = proposal.log_prob(x) + math.log1p(-share), _uniform_log_prob(x, width) + math.log(share)
            return th.logaddexp(*parts)

        return Negatives(points, log_prob(points), log_prob(actions))


def moved_by_chain(energy: EnergyFn, starts: th.Tensor, refiner: Refiner, n_steps: int, width: float) -> th.Tensor:
    """
    Where chains on the energy end, with reflection at the walls of the box.

    :param energy: ``(B, N, A) -> (B, N)``, as it is now; held fixed
    :param starts: ``(B, N, A)`` in ``[-width, width]^A``
    :param refiner: how they move
    :param n_steps: how many steps
    :param width: half of the box's size
    :return: ``(B, N, A)``, without a graph
    :raises FloatingPointError: if an energy is NaN or infinity
    """
    zero, scale = starts.new_zeros((1, 1, 1)), starts.new_full((1, 1, 1), width)
    inside = reflected(standardized(energy, zero, scale))  # of the points over the width, whose walls are at 1
    ends = refined_particles(refiner, starts, Target(standardized(inside, zero, 1.0 / scale)), n_steps=n_steps)
    return width * folded(ends / width)


def _uniform_log_prob(x: th.Tensor, width: float) -> th.Tensor:
    """On ``[-width, width]^A``; minus infinity outside."""
    level = -x.shape[-1] * math.log(2.0 * width)
    return th.where((x.abs() <= width).all(-1), level, -math.inf)
