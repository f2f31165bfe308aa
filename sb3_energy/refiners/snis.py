"""Self-normalised importance sampling."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch as th

from sb3_energy.refiners.identity import Identity
from sb3_energy.stats import effective_sample_size, importance_resample
from sb3_energy.types import RefinerInfo, RefinerState, Target, Tick


@dataclass(frozen=True)
class SelfNormalizedImportanceSampling:
    """
    Resamples the initial particles with weights ``exp(-E) / q``, where ``q`` is the density they were drawn from.
    Sampling importance resampling (Rubin 1987): exact as the number of particles grows, and no gradient is asked for.
    """

    exact: ClassVar[bool] = True
    resamples: ClassVar[bool] = True
    default_steps: ClassVar[int] = 1
    default_particles: ClassVar[int] = 128
    max_steps: ClassVar[int | None] = 1
    estimators: ClassVar[tuple[str, ...]] = ("base", "soft_value", "smc")
    head: ClassVar[str | None] = None
    needs_log_prob: ClassVar[bool] = True
    search_space: ClassVar[dict[str, Any]] = dict(particles_pow=(3, 7))

    def init(self, particles: th.Tensor, target: Target) -> RefinerState:
        """
        Evaluate the proposals' energies and importance weights.

        :param particles: ``(B, N, *E)``, draws from the proposal
        :param target: with its ``proposal_log_prob``
        :return: particles, energies, and the log-weights in ``extra``
        :raises ValueError: if the target does not say what the particles were drawn from
        """
        if target.proposal_log_prob is None:
            raise ValueError("snis needs Target.proposal_log_prob, the log-density (B, N) of the initial particles, got None")
        energies = target.energy(particles)
        return RefinerState(particles, energies, -energies - target.proposal_log_prob)

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, RefinerInfo]:
        """
        Resample the particles by importance weight, once.

        :param state: with the log-weights in ``extra``; once they are used, particles stay
        :param target: not asked again
        :param tick: which step of how many
        :param generator: source of the draws
        :return: ``N`` draws from the weighted particles
        """
        if state.extra is None:
            return state, RefinerInfo.of_move(state.particles, state.particles)
        n = state.particles.shape[1]
        particles, index = importance_resample(state.particles, state.extra, n, generator=generator)
        size = effective_sample_size(state.extra)
        info = RefinerInfo.of_move(state.particles, particles, effective_sample_size=size)
        return RefinerState(particles, state.energies.gather(1, index)), info

    def deterministic(self) -> Identity:
        """
        Return the variant that does not resample.

        :return: a refiner that keeps all particles, for the lowest energy to be selected
        """
        return Identity()
