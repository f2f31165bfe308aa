"""The energy of a critic: low where the value is high."""

from dataclasses import dataclass
from functools import partial

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_energy.autodiff import gradient_of
from sb3_energy.checks import check_choice, check_number, plain_fields
from sb3_energy.energies.arithmetic import Summable
from sb3_energy.types import BoundCritic, CriticNetwork, EnergyFn, Networks

AGGREGATES = ("mean", "min", "lcb")
SMALLEST_VARIANCE = 1e-12


@dataclass(frozen=True)
class QEnergy(Summable):
    """
    ``E(s, a) = -agg_i Q_i(s, a)`` over an ensemble of critics.

    ``min`` is SAC's clipped double Q (Fujimoto et al. 2018), with the gradient of the lowest member, particle by
    particle; ``mean`` is smooth where members cross (Nauman et al. 2024, BRO); ``lcb`` is
    ``mean - coefficient * std``, a lower confidence bound (Ciosek et al. 2019).

    :param aggregate: ``"mean"``, ``"min"`` or ``"lcb"``
    :param coefficient: of the standard deviation in ``lcb`` (``None``: 1), which alone takes it
    :raises ValueError: for another aggregate, or a coefficient out of range or where none is used
    :raises TypeError: for a coefficient that is not a number
    """

    aggregate: str = "mean"
    coefficient: float | None = None

    def __post_init__(self) -> None:
        plain_fields(self)
        check_choice("aggregate", self.aggregate, AGGREGATES)
        if self.coefficient is not None and self.aggregate != "lcb":
            raise ValueError(f"coefficient is used by aggregate='lcb' only, got {self.coefficient!r} with {self.aggregate!r}")
        if self.coefficient is not None:
            check_number("coefficient", self.coefficient)

    def bind(self, networks: Networks, obs: PyTorchObs) -> EnergyFn:
        """
        Encode the observations once. A critic that has a ``bind`` is bound to them as it is now.

        :param networks: of which the critic is used
        :param obs: ``B`` observations
        :return: ``(B, N, A) -> (B, N)``
        """
        with th.no_grad():
            features = networks.critic.encode(obs)
        return self.bind_features(networks.critic, features)

    def bind_features(self, critic: CriticNetwork, features: th.Tensor) -> EnergyFn:
        """
        The same where the observations are encoded already.

        :param critic: the critics
        :param features: ``(B, F)``, what its ``encode`` gave, without a graph
        :return: ``(B, N, A) -> (B, N)``
        """
        with th.no_grad():
            bind = getattr(critic, "bind", None)
            bound = partial(critic.evaluate, features) if bind is None else bind(features)
        coefficient = 1.0 if self.coefficient is None else self.coefficient
        return partial(_q_energy, bound, self.aggregate, coefficient)


def _q_energy(critic: BoundCritic, aggregate: str, coefficient: float, actions: th.Tensor) -> th.Tensor:
    return -aggregate_q_values(critic(actions), aggregate, coefficient)


@gradient_of(_q_energy)
def _q_energy_by_hand(
    critic: BoundCritic, aggregate: str, coefficient: float, actions: th.Tensor
) -> tuple[th.Tensor, th.Tensor] | None:
    value_and_gradient = getattr(critic, "value_and_gradient", None)
    if value_and_gradient is None:
        return None
    values, gradients = value_and_gradient(
        actions, partial(weighed_q_values, aggregate=aggregate, coefficient=coefficient), sparse=aggregate == "min"
    )
    return values.neg_(), gradients.neg_()


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
    return mean - coefficient * ((q_values - mean).square().mean(dim=0) + SMALLEST_VARIANCE).sqrt()


def weighed_q_values(q_values: th.Tensor, aggregate: str, coefficient: float = 1.0) -> tuple[th.Tensor, th.Tensor]:
    """
    One value from an ensemble's, and its derivatives with respect to each: ``1 / C`` for the mean, 1 for the lowest, and
    ``(1 - coefficient (Q_i - mean) / std) / C`` for the lower confidence bound.

    :param q_values: ``(C, ...)``, one for each critic
    :param aggregate: ``"mean"``, ``"min"`` or ``"lcb"``
    :param coefficient: of the standard deviation in ``lcb``
    :return: ``(...)`` and ``(C, ...)``
    """
    if aggregate == "min":
        values, lowest = q_values.min(dim=0)
        return values, th.zeros_like(q_values).scatter_(0, lowest.unsqueeze(0), 1.0)
    n_critics = len(q_values)
    mean = q_values.mean(dim=0)
    if aggregate == "mean":
        return mean, th.full_like(q_values, 1.0 / n_critics)
    deviation = q_values - mean
    std = (deviation.square().mean(dim=0) + SMALLEST_VARIANCE).sqrt()
    return mean - coefficient * std, (1.0 - coefficient * deviation / std) / n_critics
