"""The soft value of an energy by importance sampling."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch as th

from sb3_energy.checks import check_fraction, check_integer, plain_fields
from sb3_energy.stats import effective_sample_size, log_mean_exp
from sb3_energy.types import EntropyContext, EntropyEstimate


class SoftValue(NamedTuple):
    """
    Estimates of ``p(a) ∝ exp(-E(a))`` by importance sampling, in nats.

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
    weights, log_normalizer = log_weights.softmax(dim=1), log_mean_exp(log_weights, dim=1)
    # A proposal which the energy forbids has no weight, and 0 · ∞ is NaN
    entropy = log_normalizer + th.where(weights > 0.0, weights * energies, 0.0).sum(dim=1)
    return SoftValue(log_normalizer, entropy, effective_sample_size(log_weights))


@dataclass(frozen=True)
class SoftValueEntropy:
    """
    The refined policy's entropy as that of the Gibbs distribution it approximates, from unrefined proposals.

    The proposals are ``(1 - uniform_fraction) π_θ + uniform_fraction Uniform(box)``: the Gaussian alone has weights of
    infinite variance where the energy allows actions that it does not reach.

    :param n_proposals: proposals for each observation
    :param uniform_fraction: part of them that is uniform on the box, in [0, 1)
    :raises ValueError: if a number is out of range
    :raises TypeError: if something is not a number
    """

    n_proposals: int = 16
    uniform_fraction: float = 0.5

    looks_at: ClassVar[str] = "law"

    def __post_init__(self) -> None:
        plain_fields(self)
        check_integer("n_proposals", self.n_proposals, minimum=1)
        check_fraction("uniform_fraction", self.uniform_fraction)

    def estimate(self, context: EntropyContext) -> EntropyEstimate:
        """
        Estimate the entropy by importance sampling from proposals.

        :param context: which draws proposals, with their energies and densities
        :return: minus the entropy, which stands for ``log π(a|s)`` in SAC's backup, and the proposals' effective sample size
        """
        found = soft_value(*context.propose(self.n_proposals, self.uniform_fraction))
        records = dict(entropy_effective_sample_size=found.effective_sample_size)
        return EntropyEstimate(-found.entropy.unsqueeze(1), records)
