"""The derivative-free optimiser of implicit behavioral cloning."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch as th

from sb3_energy.checks import check_bool, check_number, check_part, plain_fields
from sb3_energy.stats import effective_sample_size, normal_noise, resample
from sb3_energy.types import RefinerInfo, RefinerState, Target, Tick


@dataclass(frozen=True)
class DerivativeFree:
    """
    Rounds of: resample the particles by ``softmax(-E)``, then move them by noise, of which every round has less.
    The energy needs no gradient. Implicit behavioral cloning's derivative-free optimiser (Florence et al. 2021,
    appendix B.1, algorithm 1).

    Where the density of the initial particles is known, the first round's weights divide by it, so that these need not be
    uniform. The last round only resamples, so that what comes out has been weighed. Each further round weighs by
    ``exp(-E)`` once more: the law is sharper than the target's, and one round is importance resampling.

    :param noise_std: standard deviation of the first round's noise
    :param noise_decay: factor of it from one round to the next, in (0, 1]
    :param quasi_random: draw from fixed low-discrepancy quantiles in place of noise
    :raises ValueError: if a number is out of range
    :raises TypeError: if something has the wrong type
    """

    noise_std: float = 0.33
    noise_decay: float = 0.5
    quasi_random: bool = False

    exact: ClassVar[bool] = False
    resamples: ClassVar[bool] = True
    default_steps: ClassVar[int] = 3
    default_particles: ClassVar[int] = 64
    max_steps: ClassVar[int | None] = None
    estimators: ClassVar[tuple[str, ...]] = ("base",)
    head: ClassVar[str | None] = None
    search_space: ClassVar[dict[str, Any]] = dict(steps=(1, 4), particles_pow=(4, 7), noise_std=(0.03, 1.0))

    def __post_init__(self) -> None:
        plain_fields(self)
        check_rounds(self.noise_std, self.noise_decay, self.quasi_random)

    def init(self, particles: th.Tensor, target: Target) -> RefinerState:
        """
        Evaluate the initial particles' energies and importance weights.

        :param particles: ``(B, N, *E)``
        :param target: what to draw from
        :return: particles, energies, and the first round's log-weights ``(B, N)`` in ``extra``
        """
        energies = target.energy(particles)
        log_weights = -energies if target.proposal_log_prob is None else -energies - target.proposal_log_prob
        return RefinerState(particles, energies, log_weights)

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, RefinerInfo]:
        """
        Resample the particles by weight and, except in the last round, perturb them.

        :param state: with the log-weights in ``extra``
        :param target: what to draw from
        :param tick: which round of how many
        :param generator: source of the draws and of the noise
        :return: the next state, and how far the particles in each place went
        """
        particles, energies = self._resampled(state, tick, generator)
        if not tick.is_last:
            noise = normal_noise(particles, self.quasi_random, generator)
            particles = particles + self.noise_std * self.noise_decay**tick.step * noise
            energies = target.energy(particles)
        size = effective_sample_size(state.extra)
        info = RefinerInfo.of_move(state.particles, particles, effective_sample_size=size)
        return RefinerState(particles, energies, -energies), info

    def deterministic(self) -> "DerivativeFree":
        """
        Return the variant that uses no random numbers.

        :return: the same rounds with systematic resampling and fixed quantiles
        """
        return replace(self, quasi_random=True)

    def _resampled(self, state: RefinerState, tick: Tick, generator: th.Generator | None) -> tuple[th.Tensor, th.Tensor]:
        if self.quasi_random and tick.is_last:  # all are kept, for the lowest energy to be selected
            return state.particles, state.energies
        particles, index = resample(state.particles, state.extra, quasi_random=self.quasi_random, generator=generator)
        return particles, state.energies.gather(1, index)


def check_rounds(noise_std: Any, noise_decay: Any, quasi_random: Any) -> None:
    """
    Check the arguments of rounds of noise and resampling.

    :param noise_std: a positive number
    :param noise_decay: a number in (0, 1]
    :param quasi_random: a bool
    :raises ValueError: if a number is out of range
    :raises TypeError: if something has the wrong type
    """
    check_number("noise_std", noise_std, strict=True)
    check_part("noise_decay", noise_decay)
    check_bool("quasi_random", quasi_random)
