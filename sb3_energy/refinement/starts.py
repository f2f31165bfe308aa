"""Where chains start: proposals before the squash, resampled where a refiner moves each particle alone."""

from typing import NamedTuple

import torch as th

from sb3_energy.refinement.proposals import Proposals
from sb3_energy.stats import importance_resample
from sb3_energy.types import EnergyFn, Refiner


class Starts(NamedTuple):
    """
    :param particles: ``(B, M, A)``, before the squash
    :param log_prob: ``(B, M)`` log-density of what they were resampled from, where they were
    :param log_weights: ``(B M, N)`` of the resampling, if there was one
    """

    particles: th.Tensor
    log_prob: th.Tensor
    log_weights: th.Tensor | None


def is_flow(refiner: Refiner) -> bool:
    """
    :param refiner: any
    :return: whether it follows a learned velocity from the base
    """
    return getattr(refiner, "head", None) in ("velocity", "average_velocity")


def energy_of_starts(energy: EnergyFn) -> EnergyFn:
    """
    :param energy: ``(B, N, A) -> (B, N)`` on the box, which chains follow; it may have a method ``of_starts() -> EnergyFn``
    :return: what says how good a place is to start at, which is the same unless the energy says otherwise
    """
    other = getattr(energy, "of_starts", None)
    return energy if other is None else other()


def resampled_proposals(
    proposals: Proposals, n_chains: int, energy_fn: EnergyFn, generator: th.Generator | None
) -> tuple[Proposals, th.Tensor]:
    """
    One proposal of each chain's, drawn by weight.

    :param proposals: ``N`` for each chain, ``n_chains`` chains in a row for each of ``B`` observations
    :param n_chains: for each observation
    :param energy_fn: ``(B, M, A) -> (B, M)``, before the squash
    :param generator: source of the draws (``None``: torch's global one)
    :return: one proposal for each chain, and the log-weights ``(B n_chains, N)``
    """
    rows, n = proposals.log_prob.shape
    with th.no_grad():
        energies = energy_fn(proposals.particles.reshape(rows // n_chains, n_chains * n, *proposals.particles.shape[2:]))
        log_weights = -energies.reshape(rows, n) - proposals.log_prob
    particles, index = importance_resample(proposals.particles, log_weights, 1, generator=generator)
    return Proposals(particles, proposals.log_prob.gather(1, index)), log_weights
