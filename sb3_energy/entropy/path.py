"""A bound of the entropy of Langevin chains from their whole path and a reverse path."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch as th

from sb3_energy.checks import check_integer, plain_fields
from sb3_energy.entropy.chains import known_log_prob
from sb3_energy.stats import gaussian_log_prob, normal_log_prob
from sb3_energy.steps import steps
from sb3_energy.types import EntropyContext, EntropyEstimate


@dataclass(frozen=True)
class PathEntropy:
    """
    ``log π(a_0) + Σ_k log F(a_k | a_{k-1}) - log B(a_{k-1} | a_k)``, with the chain's own steps ``F`` and a reverse kernel
    ``B``: above ``log π(a_K)`` in the mean, so minus it is a lower bound of the entropy, and tight where ``B`` is the true
    reverse. It is no log-density of the action, and never called one.

    With the chain's drift for ``B`` this is annealed importance sampling (Neal 2001) and far too low; DIME (Celik et al.
    2025) learns the reverse drift. Here ``B`` adds a learned network to the drift at ``a_k``, with the variance of the step
    that it takes back; its maximum likelihood is a regression, which every estimate goes on with. The gap that remains is
    the network's error.

    :param n_chains: for each observation
    :raises TypeError: if it is no integer
    :raises ValueError: if it is below 1
    """

    n_chains: int = 1

    learns_reverse: ClassVar[bool] = True
    reads_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        plain_fields(self)
        check_integer("n_chains", self.n_chains, minimum=1)

    def estimate(self, context: EntropyContext) -> EntropyEstimate:
        """
        Bound the log-probability by the ratio of the chains' forward and reverse path densities.

        :param context: which starts the chains and has the reverse drift
        :return: the bound in the mean over chains, and the loss of the reverse drift
        """
        chains = context.simulate(self.n_chains)
        assert context.reverse is not None  # checked at construction
        refiner: Any = chains.refiner
        log_ratio, ends = known_log_prob(chains), chains.particles
        loss = log_ratio.new_zeros(())
        for before, after, _, tick in steps(refiner, chains.particles, chains.target, n_steps=chains.n_steps):
            mean, std = refiner.kernel(before, chains.target, tick)
            ends = after.particles
            drift = refiner.kernel(after, chains.target, tick)[0] - ends  # of a step back from the end
            with th.enable_grad():
                learned = context.reverse(ends, tick.remaining)
                noise_back = ((before.particles - ends - drift - std * learned) / std).flatten(2)
                loss = loss + 0.5 * noise_back.square().sum(-1).mean()
            back = normal_log_prob(noise_back.detach(), math.log(std))
            log_ratio = log_ratio + gaussian_log_prob(ends.flatten(2), mean.flatten(2), std) - back
        log_ratio = log_ratio - chains.log_jacobian(ends)
        return EntropyEstimate(log_ratio.mean(dim=1, keepdim=True), None, loss)
