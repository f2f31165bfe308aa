"""Sampling from a potential: starts and Langevin chains, on R^d or in a box with reflection."""

from dataclasses import dataclass
from typing import Any

import torch as th

from sb3_energy.deferred import NonFiniteError
from sb3_energy.energies import added, folded, reflected, tempered
from sb3_energy.offline.energy_matching.settings import Settings
from sb3_energy.refiners import Langevin, MetropolisAdjustedLangevin, jko_langevin, refine, refined_particles
from sb3_energy.stats import importance_resample, normal_quantiles
from sb3_energy.steps import KernelSteps
from sb3_energy.types import EnergyFn, Refiner, RefinerState, Target, Tick

NEAR = 0.2
"""Width of the kernel that tells where draws are densest; data have a spread of about 1, or lie in a box of half width 1."""
N_SHIFTS = 5
"""Steps of the mean shift, which begins at a draw and nears the mode by a multiple each time."""
BEST_ACCEPTANCE = 0.574
"""Of Metropolis-adjusted Langevin steps (Roberts and Rosenthal 1998)."""


@dataclass(frozen=True)
class PotentialSampler:
    """
    Langevin chains of ``exp(-V / ε)``. With ``box="reflect"`` they are reflected at -1 and 1.

    :param settings: of the training; base, box, temperature, times and numbers of steps and particles are used
    """

    settings: Settings

    @property
    def refiner(self) -> Langevin:
        """Transport without noise until ``τ*``, noise that rises to ``ε`` from there on."""
        s = self.settings
        return jko_langevin(s.n_steps, s.temperature, s.sampling_time, s.transport_time)

    @property
    def equilibrium(self) -> Langevin:
        """The same steps at the temperature ``ε`` from the first one on, for chains that start at data."""
        return Langevin(self.refiner.step_size, 1.0)

    def starts(self, n_observations: int, n: int, dim: int, generator: th.Generator) -> th.Tensor:
        """
        Draw starts from the base. In a box, a normal base is folded into it.

        :param n_observations: ``B``
        :param n: ``N``
        :param dim: ``D``
        :param generator: source of the draws
        :return: ``(B, N, D)``
        """
        shape = (n_observations, n, dim)
        if self.settings.base == "uniform":
            return 2.0 * th.rand(shape, generator=generator, device=generator.device) - 1.0
        return self._end(th.randn(shape, generator=generator, device=generator.device))

    def _end(self, x: th.Tensor) -> th.Tensor:
        return x if self.settings.box is None else folded(x)

    def _target(self, potential: EnergyFn, *others: EnergyFn) -> Target:
        energy = tempered(potential, self.settings.temperature)
        energy = added(energy, *others) if others else energy
        return Target(energy if self.settings.box is None else reflected(energy))

    def moved(self, potential: EnergyFn, particles: th.Tensor, generator: th.Generator, at_data: bool = False) -> th.Tensor:
        """
        Run the chains.

        :param potential: bound, ``(B, N, D) -> (B, N)``
        :param particles: ``(B, N, D)``
        :param generator: source of the noise
        :param at_data: whether they start at data, where nothing is left to transport
        :return: ``(B, N, D)``, without a graph
        :raises FloatingPointError: if an energy is NaN or infinity
        """
        return self._run(self.equilibrium if at_data else self.refiner, particles, self._target(potential), generator)

    def _run(self, refiner: Refiner, particles: th.Tensor, target: Target, generator: th.Generator) -> th.Tensor:
        return self._end(self._checked(refined_particles, refiner, particles, target, generator))

    def _checked(self, run: Any, refiner: Any, particles: th.Tensor, target: Target, generator: th.Generator) -> Any:
        try:
            return run(refiner, particles, target, n_steps=self.settings.n_steps, generator=generator)
        except FloatingPointError as error:
            raise _diverged() from error

    def conditioned(
        self, potential: EnergyFn, energy: EnergyFn, like: th.Tensor, n: int, generator: th.Generator
    ) -> th.Tensor:
        """
        Draws from ``exp(-V / ε - E)``. Of ``n_particles`` times as many draws without ``E`` some are chosen in proportion to
        ``exp(-E)``, so that each mode has its share, and Metropolis-adjusted Langevin steps of the sum move them from there:
        sampling importance resampling (Rubin 1987) and then moves.

        :param potential: bound, ``(B, N, D) -> (B, N)``
        :param energy: the same, ``E``; in units of 1, not of ``ε``
        :param like: ``(B, D)``, for the shape
        :param n: how many
        :param generator: source of starts, choices and noise
        :return: ``(B, n, D)``, without a graph
        :raises FloatingPointError: if an energy is NaN or infinity
        """
        n_observations, dim = like.shape
        starts = self.starts(n_observations, n * self.settings.n_particles, dim, generator)
        draws = self.moved(potential, starts, generator)
        chosen, _ = importance_resample(draws, -energy(draws), n, generator=generator)
        refiner = MetropolisAdjustedLangevin(self.equilibrium.step_size, target_acceptance=BEST_ACCEPTANCE)
        return self._run(refiner, chosen, self._target(potential, energy), generator)

    def most_common(self, potential: EnergyFn, like: th.Tensor) -> th.Tensor:
        """
        Where ``n_particles`` draws are densest, of starts at fixed quantiles of the base and with fixed noise: the mode of
        their kernel density, by the mean shift from the draw at which it is largest (Comaniciu and Meer 2002). The potential
        would not tell, since it is right within a mode, and not from one to another.

        :param potential: bound, ``(B, N, D) -> (B, N)``
        :param like: ``(B, D)``, for shape and device
        :return: ``(B, D)``, the same for the same observation whatever stands beside it
        :raises FloatingPointError: if an energy is NaN or infinity
        """
        points = normal_quantiles(self.settings.n_particles, like)
        points = th.erf(points / 2.0**0.5) if self.settings.base == "uniform" else self._end(points)
        starts, fixed = points.expand(len(like), -1, -1).contiguous(), th.Generator(like.device).manual_seed(0)
        draws = self._end(self._checked(refine, SameNoise(self.refiner), starts, self._target(potential), fixed).particles)
        weights = _kernel(draws.unsqueeze(1), draws.unsqueeze(2))  # (B, N, N)
        center = draws[th.arange(len(like), device=like.device), weights.sum(dim=-1).argmax(dim=-1)].unsqueeze(1)
        for _ in range(N_SHIFTS):
            weights = _kernel(draws, center).unsqueeze(-1)
            center = (weights * draws).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)
        return center.squeeze(1)


class SameNoise(KernelSteps):
    """Langevin's steps with one draw of the noise for all observations."""

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, None]:
        """
        Draw the next particles.

        :param state: the state before the step
        :param target: what to draw from
        :param tick: which step of how many
        :param generator: source of the noise
        :return: the state after the step, and ``None`` for the diagnostics
        """
        mean, std = self.refiner.kernel(state, target, tick)
        noise = th.randn(mean.shape[1:], generator=generator, device=mean.device, dtype=mean.dtype)
        return self.refiner.init(mean + std * noise, target), None


def _kernel(x: th.Tensor, y: th.Tensor) -> th.Tensor:
    """``(..., D)`` twice -> ``(...)``, by the mean square over coordinates: it reaches as far in many dimensions as in one."""
    return (-0.5 * (x - y).square().mean(dim=-1) / NEAR**2).exp()


def _diverged() -> FloatingPointError:
    return NonFiniteError(
        "the potential is NaN or infinite where its chains went",
        "a lower learning_rate, a larger magnitude_coef, a larger n_steps, or layer_norm=True",
    )
