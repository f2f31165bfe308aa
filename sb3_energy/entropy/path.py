"""A bound of the entropy of Langevin chains from their whole path and a reverse path."""

from dataclasses import dataclass
from typing import ClassVar

import torch as th

from sb3_energy.checks import check_integer, plain_fields
from sb3_energy.entropy.kernels import KernelRefiner, gaussian_log_prob
from sb3_energy.types import EntropyContext, EntropyEstimate, Tick


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

    def __post_init__(self) -> None:
        plain_fields(self)
        check_integer("n_chains", self.n_chains, minimum=1)

    def estimate(self, context: EntropyContext) -> EntropyEstimate:
        """
        :param context: which starts the chains and has the reverse drift
        :return: the bound in the mean over chains, and the loss of the reverse drift
        """
        chains = context.simulate(self.n_chains)
        assert chains.log_prob is not None and context.reverse is not None  # seen to at construction
        refiner: KernelRefiner = chains.refiner  # type: ignore[assignment]
        state, log_ratio = refiner.init(chains.particles, chains.target), chains.log_prob
        loss = log_ratio.new_zeros(())
        for k in range(chains.n_steps):
            tick, before = Tick(k, chains.n_steps), state
            mean, std = refiner.kernel(before, chains.target, tick)
            state, _ = refiner.step(before, chains.target, tick)
            # The drift at the end, as a step back from there has it
            drift = refiner.kernel(state, chains.target, tick)[0] - state.particles
            with th.enable_grad():
                learned = context.reverse(state.particles, tick.remaining)
                residual = before.particles - state.particles - drift - std * learned
                loss = loss + 0.5 * (residual / std).square().sum(-1).mean()
            back = gaussian_log_prob(residual.detach(), th.zeros_like(residual), std)
            log_ratio = log_ratio + gaussian_log_prob(state.particles, mean, std) - back
        log_ratio = log_ratio - chains.log_jacobian(state.particles)
        return EntropyEstimate(log_ratio.mean(dim=1, keepdim=True), None, loss)
