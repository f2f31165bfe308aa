"""Energies that can be restricted to some of their observations, without encoding any of them again."""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_energy.autodiff import energy_and_grad, has_gradient
from sb3_energy.refinement.proposals import energy_of_starts
from sb3_energy.types import CriticNetwork, Energy, EnergyFn, Networks


@runtime_checkable
class SliceableEnergy(Protocol):
    """An ``EnergyFn`` at ``B`` observations that can be restricted to some of them."""

    def __call__(self, particles: th.Tensor) -> th.Tensor:
        """``(B, N, *E) -> (B, N)``."""
        ...

    def rows(self, index: th.Tensor) -> EnergyFn:
        """
        Restrict the energy to some observations of the batch.

        :param index: ``(b,)`` of observations
        :return: ``(b, N, *E) -> (b, N)``, the energy of these alone
        """
        ...


@dataclass(frozen=True, eq=False)
class BoundEnergy:
    """
    The result of :func:`bind_sliceable`.

    :param energy: the energy that is bound
    :param networks: what it is made of
    :param obs: the observations
    :param features: those of the observations that the critic has encoded: none or one
    :param fn: the energy, bound
    """

    energy: Energy
    networks: Networks
    obs: PyTorchObs
    features: list[th.Tensor]
    fn: EnergyFn

    def __call__(self, particles: th.Tensor) -> th.Tensor:
        """
        Evaluate the energy of particles.

        :param particles: ``(B, N, A)``
        :return: ``(B, N)``
        """
        return self.fn(particles)

    def energy_and_grad(self, particles: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Evaluate the energy of particles and its gradient.

        :param particles: ``(B, N, A)``
        :return: ``(B, N)`` and ``(B, N, A)``, without a graph
        """
        return energy_and_grad(self.fn, particles)

    def has_gradient(self, particles: th.Tensor) -> bool:
        """
        Check whether the energy is differentiable.

        :param particles: ``(B, N, A)``
        :return: whether it is, with respect to them
        """
        return has_gradient(self.fn, particles)

    def of_starts(self) -> EnergyFn:
        """
        Return the energy that ranks initial particles.

        :return: the energy that chooses between places to start at
        """
        return energy_of_starts(self.fn)

    def rows(self, index: th.Tensor) -> "BoundEnergy":
        """
        Restrict the energy to some observations of the batch, without computing their features again.

        :param index: ``(b,)`` of observations
        :return: the energy of these alone, bound again to features that are known
        """
        obs = {key: value[index] for key, value in self.obs.items()} if isinstance(self.obs, dict) else self.obs[index]
        return _bind(self.energy, self.networks, obs, features=[features[index] for features in self.features])


def bind_sliceable(energy: Energy, networks: Networks, obs: PyTorchObs) -> BoundEnergy:
    """
    Bind an energy such that it can be restricted to some of the observations.

    :param energy: any
    :param networks: what it is made of
    :param obs: ``B`` observations
    :return: a function of the actions ``(B, N, A) -> (B, N)``, with a method ``rows``
    """
    return _bind(energy, networks, obs, features=[])


def _bind(energy: Energy, networks: Networks, obs: PyTorchObs, *, features: list[th.Tensor]) -> BoundEnergy:
    # A shallow copy of the critic, with the same parameters and methods, that encodes these observations once: an encoder of
    # images costs more than the steps that are saved. The critic of the policy stays as it is.
    critic = copy.copy(networks.critic)
    critic.encode = partial(_encoded, networks.critic, obs, features)  # type: ignore[method-assign]
    return BoundEnergy(energy, networks, obs, features=features, fn=energy.bind(networks._replace(critic=critic), obs))


def _encoded(critic: CriticNetwork, obs: PyTorchObs, features: list[th.Tensor], asked: PyTorchObs) -> th.Tensor:
    if asked is not obs:  # an energy may encode other observations than those it is bound to
        return critic.encode(asked)
    if not features:
        features.append(critic.encode(obs))
    return features[0]
