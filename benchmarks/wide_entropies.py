"""Entropies and log-normalisers of a density by the estimators that do not look at a policy's own chains."""

import warnings
from typing import Any, ClassVar

import torch as th

from benchmarks.sampler_entropies import proposed
from sb3_energy.energies import log_tanh_jacobian
from sb3_energy.entropy import AnnealedEntropy, SoftValueEntropy, soft_value
from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refiners import AnnealedSMC
from sb3_energy.types import Chains, EnergyFn, EntropyContext, RefinerInfo, RefinerState

ESTIMATORS: dict[str, Any] = {
    "soft_value": SoftValueEntropy(),
    "soft_value, 4096 proposals": SoftValueEntropy(n_proposals=4096),
    "smc": AnnealedEntropy(),
    "smc, 30 rungs": AnnealedEntropy(n_steps=30),
}
Pair = tuple[th.Tensor, th.Tensor]


def estimates(name: str, base: Gaussian, energy: EnergyFn) -> Pair:
    """
    :param name: in :data:`ESTIMATORS`
    :param base: the Gaussians, ``(n, d)``
    :param energy: ``(n, N, d) -> (n, N)`` in the box
    :return: ``(n,)`` entropies, ``(n,)`` log-normalisers
    """
    estimator = ESTIMATORS[name]
    found = _soft if isinstance(estimator, SoftValueEntropy) else _annealed
    with th.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few effective proposals, which the table shows
        return found(estimator, base, energy)


def _soft(estimator: SoftValueEntropy, base: Gaussian, energy: EnergyFn) -> Pair:
    """The log-normaliser is that of the proposals that the estimator has asked for."""
    asked: list[Pair] = []
    propose = proposed(base, energy)

    def recorded(n_proposals: int, uniform_fraction: float) -> Pair:
        asked.append(propose(n_proposals, uniform_fraction))
        return asked[-1]

    found = estimator.estimate(_context(base, propose=recorded))
    energies, log_prob = (th.cat(parts, dim=1) for parts in zip(*asked, strict=True))
    return -found.log_prob[:, 0], soft_value(energies, log_prob).log_normalizer


class _Watched(AnnealedSMC):
    """Keeps the state after the latest step, for what an estimator does not return."""

    latest: ClassVar[list[Any]] = []

    def step(self, *args: Any, **kwargs: Any) -> tuple[RefinerState, RefinerInfo]:
        state, info = super().step(*args, **kwargs)
        self.latest[:] = [state]
        return state, info


def _annealed(estimator: AnnealedEntropy, base: Gaussian, energy: EnergyFn) -> Pair:
    """The particles' log-normaliser is that of their coordinates, which differ from the box's by a constant factor."""
    refinement = RefinementArguments("smc").make_refinement()
    begun: list[Chains] = []

    def anneal(n_particles: int) -> Chains:
        begun.append(refinement.annealed(n_particles).simulate(base, energy)._replace(refiner=_Watched()))
        return begun[-1]

    found = estimator.estimate(_context(base, anneal=anneal))
    state = _Watched.latest[0]
    latent = refinement.coordinates(base).end(state.particles)
    factor = begun[-1].log_jacobian(state.particles) - log_tanh_jacobian(latent)
    return -found.log_prob[:, 0], state.extra.log_normalizer + factor.mean(dim=1)


def _context(base: Gaussian, propose: Any = None, anneal: Any = None) -> EntropyContext:
    """What these estimators ask for, and nothing else."""
    return EntropyContext(base.mean[:, :1], propose, None, None, anneal)  # type: ignore[arg-type]
