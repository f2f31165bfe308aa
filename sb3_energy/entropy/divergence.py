"""The density that a flow leaves."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch as th

from sb3_energy.autodiff import directional_derivative, jacobian
from sb3_energy.checks import check_choice, check_integer, plain_fields
from sb3_energy.entropy.chains import known_log_prob
from sb3_energy.steps import steps, zero_energy
from sb3_energy.types import Chains, EntropyContext, EntropyEstimate, Tick

METHODS = ("exact", "hutchinson", "learned")


@dataclass(frozen=True)
class DivergenceEntropy:
    """
    ``log p(x_1) = log p(x_0) - ∫ div v dt`` along a flow (Chen et al. 2018, theorem 1).

    ``"exact"`` takes the logarithm of the determinant of each step as it is computed, so that the density is that of the
    draws, whatever the step; it costs as many derivatives as an action has coordinates. ``"hutchinson"`` sums the divergence
    over the solver's stages, with random signs (Hutchinson 1990; Grathwohl et al. 2019), and is right where steps are short.
    ``"learned"`` asks the network of a mean flow's average divergence: one evaluation.

    :param method: ``"exact"``, ``"hutchinson"`` or ``"learned"`` (``mean_flow`` only)
    :param n_probes: of ``"hutchinson"`` (``None``: 1), which alone takes it
    :param n_chains: for each observation
    :raises TypeError: if a number is no integer
    :raises ValueError: if there is no such method or a number is out of range
    """

    method: str = "exact"
    n_probes: int | None = None
    n_chains: int = 1

    reads_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        plain_fields(self)
        check_choice("method", self.method, METHODS)
        if self.n_probes is not None and self.method != "hutchinson":
            raise ValueError(f"n_probes is used by method='hutchinson' only, got {self.n_probes!r} with {self.method!r}")
        for name, value in (("n_probes", 1 if self.n_probes is None else self.n_probes), ("n_chains", self.n_chains)):
            check_integer(name, value, minimum=1)

    def estimate(self, context: EntropyContext) -> EntropyEstimate:
        """
        Integrate the change of log-density along the flow.

        :param context: which starts the flow
        :return: the log-density where it ends
        """
        chains = context.simulate(self.n_chains)
        log_prob, ends = known_log_prob(chains), chains.particles
        target = chains.target._replace(energy=zero_energy)  # a flow does not follow it
        for before, after, _, tick in steps(chains.refiner, chains.particles, target, n_steps=chains.n_steps):
            log_prob = log_prob - self._log_volume(chains, before.particles, tick)
            ends = after.particles
        log_prob = log_prob - chains.log_jacobian(ends)
        return EntropyEstimate(log_prob.mean(dim=1, keepdim=True))

    def _log_volume(self, chains: Chains, particles: th.Tensor, tick: Tick) -> th.Tensor:
        refiner: Any = chains.refiner
        if self.method == "exact":
            transport = partial(refiner.transport, target=chains.target, tick=tick)
            return th.linalg.slogdet(jacobian(transport, particles)).logabsdet
        if self.method == "learned":
            assert chains.target.average_divergence is not None  # checked at construction
            return tick.dt * chains.target.average_divergence(particles, *refiner.times(particles, tick))
        if chains.target.velocity is None:  # a mean flow: the divergence of its average velocity
            assert chains.target.average_velocity is not None
            begin, end = refiner.times(particles, tick)
            return tick.dt * self._divergence(partial(_averaged, chains.target.average_velocity, begin, end), particles)
        return sum(
            stage.weight * self._divergence(partial(_at, chains.target.velocity, stage.time), stage.particles)
            for stage in refiner.stages(particles, chains.target, tick)
        )

    def _divergence(self, velocity: Any, particles: th.Tensor) -> th.Tensor:
        total = particles.new_zeros(particles.shape[:2])
        n_probes = self.n_probes or 1
        for _ in range(n_probes):
            signs = th.randint_like(particles, 0, 2) * 2.0 - 1.0
            total += (signs * directional_derivative(velocity, (particles,), (signs,))).flatten(2).sum(-1)
        return total / n_probes


def _at(velocity: Any, time: th.Tensor, x: th.Tensor) -> th.Tensor:
    return velocity(x, time)


def _averaged(velocity: Any, begin: th.Tensor, end: th.Tensor, x: th.Tensor) -> th.Tensor:
    return velocity(x, begin, end)
