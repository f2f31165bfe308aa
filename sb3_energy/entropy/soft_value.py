"""The soft value of an energy by importance sampling."""

import warnings
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch as th

from sb3_energy.checks import check_fraction, check_integer, plain_fields
from sb3_energy.deferred import active_checks, is_host
from sb3_energy.stats import effective_sample_size, log_mean_exp
from sb3_energy.types import EntropyContext, EntropyEstimate

FIRST_NUMBER, LARGEST_NUMBER = 16, 256
"""How many proposals a choice begins with, and where it ends."""

ENOUGH, TOO_FEW = 8.0, 4.0
"""Effective sample sizes, means over the batch: where the choice stops, and below which a warning is given."""


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

    Without a number of proposals there are 16, and as many more as there are until the effective sample size, in the mean over
    the batch, is at least 8 or there are 256. All are used. Below 4 few proposals decide, and a warning says so once.

    :param n_proposals: proposals for each observation (``None``: chosen by the effective sample size)
    :param uniform_fraction: part of them that is uniform on the box, in [0, 1)
    :raises ValueError: if a number is out of range
    :raises TypeError: if something is not a number
    """

    n_proposals: int | None = None
    uniform_fraction: float = 0.5

    looks_at: ClassVar[str] = "law"

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.n_proposals is not None:
            check_integer("n_proposals", self.n_proposals, minimum=1)
        check_fraction("uniform_fraction", self.uniform_fraction)

    @property
    def reads_values(self) -> bool:
        """Whether the number of proposals is chosen, which no CUDA graph can record."""
        return self.n_proposals is None

    def estimate(self, context: EntropyContext) -> EntropyEstimate:
        """
        Estimate the entropy by importance sampling from proposals.

        :param context: which draws proposals, with their energies and densities
        :return: minus the entropy, which stands for ``log π(a|s)`` in SAC's backup; the proposals' effective sample size and
            how many there were
        """
        energies, log_prob = context.propose(self.n_proposals or FIRST_NUMBER, self.uniform_fraction)
        found = soft_value(energies, log_prob)
        while self.n_proposals is None and _wants_more(found, energies.shape[1]):
            more = context.propose(energies.shape[1], self.uniform_fraction)
            energies, log_prob = th.cat([energies, more[0]], dim=1), th.cat([log_prob, more[1]], dim=1)
            found = soft_value(energies, log_prob)
        size = found.effective_sample_size
        self._warn_once(size, min(TOO_FEW, energies.shape[1] / 2.0))
        records = dict(entropy_effective_sample_size=size, entropy_n_proposals=th.full_like(size, float(energies.shape[1])))
        return EntropyEstimate(-found.entropy.unsqueeze(1), records)

    def _warn_once(self, size: th.Tensor, too_few: float) -> None:
        if hasattr(self, "_has_warned") or active_checks() is not None or not is_host(size) or not size.mean() < too_few:
            return
        object.__setattr__(self, "_has_warned", True)
        warnings.warn(
            "entropy_estimator='soft_value' is left with few of its proposals: their effective sample size is below "
            f"{too_few:g} in the mean over the batch (train/entropy_effective_sample_size); try entropy_estimator='smc'",
            stacklevel=3,
        )


def _wants_more(found: SoftValue, n_proposals: int) -> bool:
    return 2 * n_proposals <= LARGEST_NUMBER and bool(found.effective_sample_size.mean() < ENOUGH)
