"""The soft value of an energy by importance sampling."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch as th

from sb3_energy.checks import check_fraction, check_integer, plain_fields
from sb3_energy.types import EntropyContext, EntropyEstimate


class SoftValue(NamedTuple):
    """
    What importance sampling says of ``p(a) ∝ exp(-E(a))``, in nats.

    :param log_normalizer: ``(B,)`` estimate of ``log ∫ exp(-E(a)) da``; times the temperature it is the soft value
    :param entropy: ``(B,)`` estimate of the entropy of ``p``
    :param effective_sample_size: ``(B,)`` how many proposals the weights are worth
    """

    log_normalizer: th.Tensor
    entropy: th.Tensor
    effective_sample_size: th.Tensor


def soft_value(energies: th.Tensor, proposal_log_prob: th.Tensor) -> SoftValue:
    """
    ``log (1/N) Σ exp(-E(a_i)) / q(a_i)``: a lower bound of the log-normaliser in the mean, tighter with ``N``.
    Importance sampling (Burda et al. 2016, theorem 1, with ``V(s) = α log ∫ exp(Q/α)`` of Haarnoja et al. 2017,
    equation 10); the entropy is ``log Z + Σ w_i E_i`` with self-normalised ``w_i``.

    :param energies: ``(B, N)``, temperature included, in the space of the densities
    :param proposal_log_prob: ``(B, N)`` log-densities of the proposals
    :return: log-normaliser, entropy and effective sample size
    :raises ValueError: if the shapes differ
    """
    if energies.shape != proposal_log_prob.shape or energies.dim() != 2:
        raise ValueError(
            f"energies and proposal_log_prob must both be (B, N), got {tuple(energies.shape)} "
            f"and {tuple(proposal_log_prob.shape)}"
        )
    log_weights = -energies - proposal_log_prob
    weights = log_weights.softmax(dim=1)
    log_normalizer = log_weights.logsumexp(dim=1) - math.log(energies.shape[1])
    # a proposal which the energy forbids has no weight, and 0 · ∞ is no number
    entropy = log_normalizer + th.where(weights > 0.0, weights * energies, 0.0).sum(dim=1)
    return SoftValue(log_normalizer, entropy, 1.0 / weights.square().sum(dim=1))


@dataclass(frozen=True)
class SoftValueEntropy:
    """
    The refined policy's entropy as that of the Gibbs distribution it approximates, from unrefined proposals.

    The proposals are ``(1 - uniform_fraction) π_θ + uniform_fraction Uniform(box)``: the Gaussian alone has weights of
    infinite variance where the energy allows actions that it does not reach.

    :param n_proposals: proposals for each observation
    :param uniform_fraction: part of them that is uniform on the box, in [0, 1)
    :raises ValueError: if a number is out of range
    :raises TypeError: if something is no number
    """

    n_proposals: int = 16
    uniform_fraction: float = 0.5

    def __post_init__(self) -> None:
        plain_fields(self)
        check_integer("n_proposals", self.n_proposals, minimum=1)
        check_fraction("uniform_fraction", self.uniform_fraction)

    def estimate(self, context: EntropyContext) -> EntropyEstimate:
        """
        :param context: which draws proposals and says their energies and densities
        :return: minus the entropy: what SAC's backup calls ``log π(a|s)``, in the mean over actions; and how many proposals
            the weights are worth
        """
        found = soft_value(*context.propose(self.n_proposals, self.uniform_fraction))
        records = dict(entropy_effective_sample_size=found.effective_sample_size)
        return EntropyEstimate(-found.entropy.unsqueeze(1), records)
