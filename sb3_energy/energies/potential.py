"""Energies that are learned: a potential, alone or guided by the critic."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.checks import check_bool, check_number, plain_fields
from sb3_energy.energies.arithmetic import Summable
from sb3_energy.energies.q_ensemble import QEnergy
from sb3_energy.steps import zero_energy
from sb3_energy.types import EnergyFn, Networks


@dataclass(frozen=True)
class PotentialEnergy(Summable):
    """
    ``E(s, a) = V(s, a) / ε``: ``exp(-E)`` is the potential's density of actions (Energy Matching, Balcerak et al. 2025,
    equation 6).

    :param temperature: ``ε``
    :raises ValueError: if the temperature is out of range
    :raises TypeError: if it is not a number
    """

    temperature: float = 0.1
    needs_potential: ClassVar[bool] = True

    def __post_init__(self) -> None:
        plain_fields(self)
        check_number("temperature", self.temperature, strict=True)

    def temperature_of_q(self, q_scale: th.Tensor) -> th.Tensor:
        """
        The temperature ``T`` of the law ``exp(Q / T)`` that the potential learns from, since it is all that is acted by.

        :param q_scale: scalar, the spread of Q
        :return: scalar, ``ε`` times the spread
        """
        return self.temperature * q_scale

    def bind(self, networks: Networks, obs: PyTorchObs) -> EnergyFn:
        """
        Encode the observations once.

        :param networks: of which the critic encodes and the potential is used
        :param obs: ``B`` observations
        :return: ``(B, N, A) -> (B, N)``
        """
        with th.no_grad():
            potential = networks.potential.bind(networks.critic.encode(obs))
        return _BoundPotential(potential, None, 0.0, self.temperature)


@dataclass(frozen=True)
class GuidedPotential(Summable):
    """
    ``E(s, a) = U(s, a) / ε`` with ``U = V(s, a) - λ Q(s, a)``: where the potential leads, and where the critic does.

    By default the guidance is free of scales: Q is divided by ``networks.q_scale``, the spread that Q has over the actions of
    one observation, so that rewards times 100 leave ``λ Q`` what it is. With ``V = 0`` and without that,
    ``exp(-E) = exp(λ Q / ε)``, which is SAC's ``exp(Q / α)`` for ``λ = 1`` and ``ε = α``.

    :param guidance: ``λ``; with 0 the critic is not asked
    :param temperature: ``ε``
    :param normalize_q: whether Q is divided by its spread
    :param aggregate: of the critics, see :class:`sb3_energy.energies.QEnergy`
    :param coefficient: of the standard deviation in ``lcb``
    :raises ValueError: if a number is out of range, or Q is not to be normalised and not used
    :raises TypeError: if something has the wrong type
    """

    guidance: float = 1.0
    temperature: float = 0.1
    normalize_q: bool = True
    aggregate: str = "mean"
    coefficient: float | None = None
    needs_potential: ClassVar[bool] = True

    def __post_init__(self) -> None:
        plain_fields(self)
        check_number("guidance", self.guidance)
        check_number("temperature", self.temperature, strict=True)
        check_bool("normalize_q", self.normalize_q)
        if self.guidance == 0.0 and not self.normalize_q:
            raise ValueError(f"normalize_q=False needs guidance above 0, without which Q is not asked, got {self.guidance!r}")
        QEnergy(self.aggregate, self.coefficient)

    def temperature_of_q(self, q_scale: Any) -> Any:
        """
        The temperature ``T`` of the guidance ``exp(Q / T)``: of what starts are weighed by and of what the potential learns
        from. The actions' own law is ``exp(-V / ε + Q / T)``.

        :param q_scale: scalar, the spread of Q
        :return: scalar, ``ε / λ``, times the spread if Q is divided by it. Without guidance it is that of ``λ = 1``
        """
        temperature = self.temperature / (self.guidance or 1.0)
        return temperature * q_scale if self.normalize_q else temperature

    def bind(self, networks: Networks, obs: PyTorchObs) -> EnergyFn:
        """
        Encode the observations once, for the critic and for the potential.

        :param networks: critic, potential and the spread of Q
        :param obs: ``B`` observations
        :return: ``(B, N, A) -> (B, N)``
        """
        with th.no_grad():
            features = networks.critic.encode(obs)
            potential = networks.potential.bind(features)
        if self.guidance == 0.0:
            return _BoundPotential(potential, None, 0.0, self.temperature)
        q_scale = networks.q_scale.detach() if self.normalize_q else None
        factor = self.temperature / self.temperature_of_q(q_scale)  # of now, as the networks are
        q_energy = QEnergy(self.aggregate, self.coefficient).bind_features(networks.critic, features)
        return _BoundPotential(potential, q_energy, factor, self.temperature)


@dataclass(frozen=True, eq=False)
class _BoundPotential:
    """
    ``(V + factor E_Q) / ε``, bound to its observations.

    :param potential: ``(B, N, A) -> (B, N)``
    :param q_energy: the same of the critic (``None``: it is not asked)
    :param factor: of the critic's energy, ``ε / T``
    :param temperature: ``ε``
    """

    potential: EnergyFn
    q_energy: EnergyFn | None
    factor: float | th.Tensor
    temperature: float

    def __call__(self, x: th.Tensor) -> th.Tensor:
        values = self.potential(x)
        if self.q_energy is not None:
            values = values + self.factor * self.q_energy(x)
        return values / self.temperature

    def energy_and_grad(self, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """``(B, N)`` and ``(B, N, A)``, without a graph."""
        values, gradients = energy_and_grad(self.potential, x)
        if self.q_energy is not None:
            q_values, q_gradients = energy_and_grad(self.q_energy, x)
            values, gradients = values + self.factor * q_values, gradients + self.factor * q_gradients
        return values / self.temperature, gradients / self.temperature

    def parts(self) -> dict[str, EnergyFn]:
        """The terms by name, over the temperature."""
        terms: dict[str, EnergyFn] = {"V": replace(self, q_energy=None)}
        return terms if self.q_energy is None else terms | {"-λQ": self.of_starts()}

    def of_starts(self) -> EnergyFn:
        """
        What chooses between places that are far apart: the guidance alone, where there is one. Short chains teach a potential
        how it falls around each mode, and hardly how deep one mode is beside another that no chain reaches from it.
        """
        return self if self.q_energy is None else _BoundPotential(zero_energy, self.q_energy, self.factor, self.temperature)
