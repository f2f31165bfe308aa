"""Model predictive path integral control, on any energy."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch as th

from sb3_energy.checks import check_bool, check_integer, check_number, plain_fields
from sb3_energy.stats import effective_sample_size, importance_resample, normal_noise
from sb3_energy.types import RefinerInfo, RefinerState, Target, Tick


class _Plan(NamedTuple):
    mean: th.Tensor  # (B, 1, *E)
    std: th.Tensor  # (B, 1, *E)


@dataclass(frozen=True)
class MPPI:
    """
    Rounds of: keep the elites, weigh them by ``softmax(-E / temperature)``, fit a Gaussian, draw candidates from it.

    MPPI (Williams et al. 2017, algorithm 2) with TD-MPC2's elites and floor under the standard deviation
    (Hansen et al. 2024, appendix H). The first round fits the initial particles. The particles that come out are the
    last candidates resampled by the same weights; their law is a Gaussian's tilted by the energy, not the Gibbs
    distribution (one mode of several, at most).

    :param n_elites: candidates that are kept (``None``: an eighth of them, but at least 4)
    :param temperature: of the weights, in units of the energy's own
    :param min_std: smallest standard deviation of the Gaussian
    :param max_std: largest one
    :param quasi_random: draw candidates from fixed low-discrepancy quantiles in place of noise
    :param warm_start: whether a policy hands the plan of one prediction on to the next, as SB3's ``state``: a quarter of
        the first candidates is then drawn around the last plan, as TD-MPC2 starts at its last plan. The rounds are the same
    :raises ValueError: if a number is out of range
    """

    n_elites: int | None = None
    temperature: float = 1.0
    min_std: float = 0.05
    max_std: float = 2.0
    quasi_random: bool = False
    warm_start: bool = False

    exact: ClassVar[bool] = False
    resamples: ClassVar[bool] = True
    default_steps: ClassVar[int] = 3
    default_particles: ClassVar[int] = 64
    max_steps: ClassVar[int | None] = None
    estimators: ClassVar[tuple[str, ...]] = ("base",)
    head: ClassVar[str | None] = None
    search_space: ClassVar[dict[str, Any]] = dict(steps=(1, 6), particles_pow=(4, 7))

    def __post_init__(self) -> None:
        plain_fields(self)
        if self.n_elites is not None:
            check_integer("n_elites", self.n_elites, minimum=1)
        for name in ("temperature", "min_std", "max_std"):
            check_number(name, getattr(self, name), strict=True)
        for name in ("quasi_random", "warm_start"):
            check_bool(name, getattr(self, name))
        if self.max_std < self.min_std:
            raise ValueError(f"max_std must be at least min_std={self.min_std:g}, got {self.max_std!r}")

    def init(self, particles: th.Tensor, target: Target) -> RefinerState:
        """
        Evaluate the first candidates' energies.

        :param particles: ``(B, N, *E)``: the first candidates
        :param target: whose energy is to be low
        :return: particles and energies
        """
        return RefinerState(particles, target.energy(particles))

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, RefinerInfo]:
        """
        Fit a Gaussian to the weighted candidates and draw the next ones from it.

        :param state: the candidates of the round before
        :param target: whose energy is to be low
        :param tick: which round of how many
        :param generator: source of the noise
        :return: the candidates of this round (resampled by weight if it is the last), the Gaussian in ``extra``
        """
        log_weights = self._log_weights(state.energies)
        plan = self._fit(state.particles, log_weights)
        particles = self._draw(plan, state.particles, generator)
        energies = target.energy(particles)
        if tick.is_last and not self.quasi_random:
            particles, index = importance_resample(
                particles, self._log_weights(energies), energies.shape[1], generator=generator
            )
            energies = energies.gather(1, index)
        size = effective_sample_size(log_weights)
        info = RefinerInfo.of_move(state.particles, particles, effective_sample_size=size)
        return RefinerState(particles, energies, plan), info

    def deterministic(self) -> "MPPI":
        """
        Return the variant that uses no random numbers.

        :return: the same rounds on fixed quantiles, the first of which is the Gaussian's mean
        """
        return replace(self, quasi_random=True)

    def _log_weights(self, energies: th.Tensor) -> th.Tensor:
        n_elites = max(4, energies.shape[1] // 8) if self.n_elites is None else self.n_elites
        if n_elites < energies.shape[1]:
            threshold = energies.kthvalue(n_elites, dim=1, keepdim=True).values
            energies = energies.masked_fill(energies > threshold, th.inf)
        return -energies / self.temperature

    def _fit(self, particles: th.Tensor, log_weights: th.Tensor) -> _Plan:
        weights = log_weights.softmax(dim=1)
        weights = weights.reshape(weights.shape + (1,) * (particles.dim() - 2))
        mean = (weights * particles).sum(dim=1, keepdim=True)
        std = (weights * (particles - mean).square()).sum(dim=1, keepdim=True).sqrt()
        return _Plan(mean, std.clamp(self.min_std, self.max_std))

    def _draw(self, plan: _Plan, like: th.Tensor, generator: th.Generator | None) -> th.Tensor:
        return plan.mean + plan.std * normal_noise(like, self.quasi_random, generator)
