"""The energy of a critic: low where the value is high."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_energy.types import CriticNetwork, EnergyFn, Networks

AGGREGATES = ("mean", "min", "lcb")


@dataclass(frozen=True)
class QEnergy:
    """
    ``E(s, a) = -agg_i Q_i(s, a)`` over an ensemble of critics.

    ``min`` is SAC's clipped double Q (Fujimoto et al. 2018), with the gradient of the lowest member, particle by
    particle; ``mean`` is smooth where members cross (Nauman et al. 2024, BRO); ``lcb`` is
    ``mean - coefficient * std``, a lower confidence bound (Ciosek et al. 2019).

    :param aggregate: ``"mean"``, ``"min"`` or ``"lcb"``
    :param coefficient: of the standard deviation in ``lcb`` (``None``: 1), which alone takes it
    :raises ValueError: for another aggregate, or a coefficient out of range or where none is used
    :raises TypeError: for a coefficient that is no number
    """

    aggregate: str = "mean"
    coefficient: float | None = None

    def __post_init__(self) -> None:
        if self.aggregate not in AGGREGATES:
            raise ValueError(f"aggregate must be one of {list(AGGREGATES)}, got {self.aggregate!r}")
        if self.coefficient is not None and self.aggregate != "lcb":
            raise ValueError(f"coefficient is used by aggregate='lcb' only, got {self.coefficient!r} with {self.aggregate!r}")
        if self.coefficient is not None:
            _check_coefficient(self.coefficient)

    def bind(self, networks: Networks, obs: PyTorchObs) -> EnergyFn:
        """
        Encode the observations once.

        :param networks: of which the critic is used
        :param obs: ``B`` observations
        :return: ``(B, N, A) -> (B, N)``
        """
        with th.no_grad():
            features = networks.critic.encode(obs)
        coefficient = 1.0 if self.coefficient is None else self.coefficient
        return partial(_q_energy, networks.critic, features, self.aggregate, coefficient)


def _check_coefficient(coefficient: Any) -> None:
    message = f"coefficient must be a finite number of at least 0, got {coefficient!r}"
    if isinstance(coefficient, bool) or not isinstance(coefficient, (int, float)):
        raise TypeError(message)
    if not 0.0 <= coefficient < math.inf:
        raise ValueError(message)


def _q_energy(critic: CriticNetwork, features: th.Tensor, aggregate: str, coefficient: float, actions: th.Tensor) -> th.Tensor:
    return -aggregate_q_values(critic.evaluate(features, actions), aggregate, coefficient)


def aggregate_q_values(q_values: th.Tensor, aggregate: str, coefficient: float = 1.0) -> th.Tensor:
    """
    One value from an ensemble's.

    :param q_values: ``(C, ...)``, one for each critic
    :param aggregate: ``"mean"``, ``"min"`` or ``"lcb"``
    :param coefficient: of the standard deviation in ``lcb``
    :return: ``(...)``
    """
    if aggregate == "min":
        return q_values.min(dim=0).values  # the gradient is the lowest member's, not an average over ties
    mean = q_values.mean(dim=0)
    if aggregate == "mean":
        return mean
    # the small number keeps the gradient of the root finite where all members agree
    return mean - coefficient * ((q_values - mean).square().mean(dim=0) + 1e-12).sqrt()
