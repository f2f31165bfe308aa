"""Bounds of the entropy of Langevin chains from the Gaussian that each of them ends in."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch as th

from sb3_energy.checks import check_integer, plain_fields
from sb3_energy.deferred import require
from sb3_energy.stats import gaussian_log_prob, log_mean_exp
from sb3_energy.steps import lean, steps
from sb3_energy.types import EntropyContext, EntropyEstimate


@dataclass(frozen=True)
class MixtureEntropy:
    """
    The last step of a Langevin chain draws from a known Gaussian. Of ``M`` independent chains, the density at the end of one
    under the mixture of all last kernels is too high in the mean, because its own is among them: ``-E log π_incl`` lies below
    the entropy. Under any density that has not seen the chain, ``-E log q`` lies above (Gibbs' inequality). ``q`` is half the
    mixture of the other chains' kernels and half the same with wider ones, by Scott's rule (1992): the kernels
    alone are so narrow that few chains leave their ends uncovered. Both bounds are logged, and the estimate is halfway
    between them. The sandwich needs low dimensions: where no chain ends near another, both bounds are wide of the entropy.

    :param n_chains: ``M``, at least 2
    :raises TypeError: if it is no integer
    :raises ValueError: if it is below 2
    """

    n_chains: int = 32

    looks_at: ClassVar[str] = "last_step"

    def __post_init__(self) -> None:
        plain_fields(self)
        check_integer("n_chains", self.n_chains, minimum=2)

    def estimate(self, context: EntropyContext) -> EntropyEstimate:
        """
        Bound the entropy of the mixture of the chains' last kernels from both sides.

        :param context: which starts the chains
        :return: minus the middle of the bounds, and both of them
        """
        chains = context.simulate(self.n_chains)
        refiner: Any = chains.refiner
        *_, last = steps(lean(refiner), chains.particles, chains.target, n_steps=chains.n_steps)
        means, std = refiner.kernel(last.before, chains.target, last.tick)
        log_jacobian = chains.log_jacobian(last.after.particles)
        means, ends = means.flatten(2), last.after.particles.flatten(2)
        log_kernels = gaussian_log_prob(ends.unsqueeze(2), means.unsqueeze(1), std)  # (B, M, M)
        m = means.shape[1]
        inclusive = log_mean_exp(log_kernels, dim=2) - log_jacobian
        wide = (std**2 + _spread_of_others(means) * m ** (-2.0 / (means.shape[2] + 4.0))).sqrt().unsqueeze(2)
        log_wide = gaussian_log_prob(ends.unsqueeze(2), means.unsqueeze(1), wide)
        own = th.eye(m, dtype=th.bool, device=means.device)
        of_others = [kernels.masked_fill(own, -th.inf).logsumexp(dim=2) for kernels in (log_kernels, log_wide)]
        others = th.logaddexp(*of_others) - math.log(2.0 * (m - 1.0)) - log_jacobian
        lower, upper = -inclusive.mean(dim=1), -others.mean(dim=1)
        require(th.isfinite(upper).all(), _alone_error)
        middle = -0.5 * (lower + upper).unsqueeze(1)
        return EntropyEstimate(middle, dict(entropy_lower=lower, entropy_upper=upper))


def _alone_error() -> FloatingPointError:
    return FloatingPointError(
        "entropy_estimator='mixture' found chains that end where no other does: its upper bound is not finite; "
        "try more n_chains, a larger step_size, or entropy_estimator='soft_value'"
    )


def _spread_of_others(x: th.Tensor) -> th.Tensor:
    """``(B, M, D) -> (B, M, D)``, the variance of all but one, for each of them."""
    n, centred = x.shape[1], x - x.mean(dim=1, keepdim=True)
    squares = centred.square()
    # Welford's update, in reverse
    return ((squares.sum(dim=1, keepdim=True) - squares * n / (n - 1.0)) / (n - 1.0)).clamp(min=0.0)
