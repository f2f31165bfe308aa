"""Bounds of the entropy of Langevin chains from the Gaussian that each of them ends in."""

import math
from dataclasses import dataclass

import torch as th

from sb3_energy.entropy.kernels import KernelRefiner, gaussian_log_prob
from sb3_energy.types import EntropyContext, EntropyEstimate, Tick


@dataclass(frozen=True)
class MixtureEntropy:
    """
    The last step of a Langevin chain draws from a known Gaussian. Of ``M`` independent chains, the density at the end of one
    under the mixture of all last kernels is too high in the mean, because its own is among them: ``-E log π_incl`` lies below
    the entropy; without its own it lies above, by Jensen's inequality. Both bounds are logged, and the estimate is
    halfway between them. The sandwich needs low dimensions (up to about 6): above, no chain ends near another.

    :param n_chains: ``M``, at least 2
    :raises TypeError: if it is no integer
    :raises ValueError: if it is below 2
    """

    n_chains: int = 32

    def __post_init__(self) -> None:
        if isinstance(self.n_chains, bool) or not isinstance(self.n_chains, int):
            raise TypeError(f"n_chains must be an integer, got {self.n_chains!r}")
        if self.n_chains < 2:
            raise ValueError(f"n_chains must be at least 2, got {self.n_chains!r}")

    def estimate(self, context: EntropyContext) -> EntropyEstimate:
        """
        :param context: which starts the chains
        :return: minus the middle of the bounds, and both of them
        """
        chains = context.simulate(self.n_chains)
        refiner: KernelRefiner = chains.refiner  # type: ignore[assignment]
        state = refiner.init(chains.particles, chains.target)
        for k in range(chains.n_steps - 1):
            state, _ = refiner.step(state, chains.target, Tick(k, chains.n_steps))
        means, std = refiner.kernel(state, chains.target, Tick(chains.n_steps - 1, chains.n_steps))
        ends = means + std * th.randn_like(means)
        log_kernels = gaussian_log_prob(ends.unsqueeze(2), means.unsqueeze(1), std)  # (B, M, M)
        log_jacobian = chains.log_jacobian(ends)
        m = means.shape[1]
        inclusive = log_kernels.logsumexp(dim=2) - math.log(m) - log_jacobian
        own = th.eye(m, dtype=th.bool, device=means.device)
        others = log_kernels.masked_fill(own, -th.inf).logsumexp(dim=2) - math.log(m - 1) - log_jacobian
        lower, upper = -inclusive.mean(dim=1), -others.mean(dim=1)
        if not th.isfinite(upper).all():
            raise FloatingPointError(
                "entropy_estimator='mixture' found chains that end where no other does: its upper bound is infinite; "
                "try more n_chains, a larger step_size, or entropy_estimator='soft_value'"
            )
        middle = -0.5 * (lower + upper).unsqueeze(1)
        return EntropyEstimate(middle, dict(entropy_lower=lower, entropy_upper=upper))
