"""Sampling from a potential: starts and Langevin chains, on R^d or in a box with reflection."""

from dataclasses import dataclass

import torch as th

from sb3_energy.deferred import NonFiniteError
from sb3_energy.energies import folded, reflected, tempered
from sb3_energy.offline.energy_matching.settings import Settings
from sb3_energy.refiners import Langevin, jko_langevin, refine, refined_particles, select
from sb3_energy.stats import normal_quantiles
from sb3_energy.types import EnergyFn, Target


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

    def _target(self, potential: EnergyFn) -> Target:
        energy = tempered(potential, self.settings.temperature)
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
        refiner = self.equilibrium if at_data else self.refiner
        try:
            return self._end(
                refined_particles(
                    refiner, particles, self._target(potential), n_steps=self.settings.n_steps, generator=generator
                )
            )
        except FloatingPointError as error:
            raise _diverged() from error

    def lowest(self, potential: EnergyFn, like: th.Tensor) -> th.Tensor:
        """
        The lowest point of descents without noise from fixed quantiles of the base, starts included.

        :param potential: bound, ``(B, N, D) -> (B, N)``
        :param like: ``(B, D)``, for shape and device
        :return: ``(B, D)``
        :raises FloatingPointError: if an energy is NaN or infinity
        """
        points = normal_quantiles(self.settings.n_particles, like)
        points = th.erf(points / 2.0**0.5) if self.settings.base == "uniform" else self._end(points)
        starts = points.expand(len(like), -1, -1).contiguous()
        target = self._target(potential)
        try:
            first = refine(self.refiner, starts, target, n_steps=0)
            last = refine(self.refiner.deterministic(), starts, target, n_steps=self.settings.n_steps)
        except FloatingPointError as error:
            raise _diverged() from error
        both = last._replace(
            particles=th.cat([last.particles, first.particles], 1), energies=th.cat([last.energies, first.energies], 1)
        )
        return self._end(select(both, deterministic=True))


def _diverged() -> FloatingPointError:
    return NonFiniteError(
        "the potential is NaN or infinite where its chains went",
        "a lower learning_rate, a larger magnitude_coef, a larger n_steps, or layer_norm=True",
    )
