"""Minus the log-density of the proposals as a function of a refiner's coordinates: where annealing starts."""

import math
from functools import partial

import torch as th

from sb3_energy.autodiff import gradient_of
from sb3_energy.refinement.bases import Base, Gaussian
from sb3_energy.refinement.boxes import Coordinates, Framed, TanhBox
from sb3_energy.refinement.proposals import mixture_log_prob
from sb3_energy.stats import gaussian_log_prob, uniform_log_prob
from sb3_energy.types import EnergyFn


def proposal_energy(coordinates: Coordinates, base: Base, uniform_fraction: float) -> EnergyFn:
    """
    Minus the log-density of ``(1 - f) base + f Uniform(box)``, in a refiner's coordinates.

    :param coordinates: at ``B`` observations
    :param base: at the same observations, with a density
    :param uniform_fraction: ``f``
    :return: ``(B, N, *E) -> (B, N)``
    """
    return partial(_proposal_energy, coordinates, base, uniform_fraction)


def _proposal_energy(coordinates: Coordinates, base: Base, uniform_fraction: float, x: th.Tensor) -> th.Tensor:
    particles = coordinates.end(x)
    return -coordinates.log_prob(particles, mixture_log_prob(base, particles, uniform_fraction))


@gradient_of(_proposal_energy)
def _proposal_energy_by_hand(
    coordinates: Coordinates, base: Base, uniform_fraction: float, x: th.Tensor
) -> tuple[th.Tensor, th.Tensor] | None:
    box = coordinates.box if isinstance(coordinates, Framed) else coordinates
    if type(box) is not TanhBox or type(base) is not Gaussian or not 0.0 < uniform_fraction < 1.0:
        return None
    particles = coordinates.end(x)
    mean, variance = base.mean.unsqueeze(1), base.std.unsqueeze(1).square()
    of_base = math.log1p(-uniform_fraction) + gaussian_log_prob(
        particles.flatten(2), mean.flatten(2), base.std.unsqueeze(1).flatten(2)
    )
    of_box = math.log(uniform_fraction) + uniform_log_prob(particles)
    share = th.sigmoid(of_base - of_box).reshape(of_base.shape + (1,) * (x.dim() - 2))  # of the base in the density there
    pull = 2.0 * th.tanh(particles)
    gradients = pull + share * ((particles - mean) / variance - pull)
    if isinstance(coordinates, Framed):
        gradients = gradients * coordinates.scale
    return -coordinates.log_prob(particles, th.logaddexp(of_base, of_box)), gradients
