"""Energies on numpy, by registration: values and gradients of actions scaled to [-1, 1]."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_energy.energies import Composite, QEnergy
from sb3_energy.energies.q_ensemble import SMALLEST_VARIANCE
from sb3_energy.networks import Originals
from sb3_energy.policies.fast_predict.numpy_networks import Array, NumpyNetwork

NumpyEnergyFn = Callable[[Array], tuple[Array, Callable[[], Array]]]
"""``(B, N, A)`` actions -> ``(B, N)`` energies, and a function that computes their gradients ``(B, N, A)``."""


class BoundEnergy(NamedTuple):
    """
    An energy at some observations.

    :param energy: of actions
    :param starts: the energy that weighs proposals, where it is another one
    """

    energy: NumpyEnergyFn
    starts: NumpyEnergyFn

    def __call__(self, actions: th.Tensor) -> th.Tensor:
        """``(B, N, A) -> (B, N)``."""
        return th.from_numpy(self.energy(actions.numpy())[0])

    def energy_and_grad(self, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """``(B, N, A) -> (B, N), (B, N, A)``."""
        values, gradients = self.energy(actions.numpy())
        return th.from_numpy(values), th.from_numpy(gradients())

    def of_starts(self) -> "BoundEnergy":
        """The energy that weighs proposals."""
        return BoundEnergy(self.starts, self.starts)


NumpyEnergy = Callable[[Array], BoundEnergy]
"""An energy as a function of the critic's features ``(B, F)``."""


class FastEnergy(NamedTuple):
    """
    Numpy implementation of a class of energies.

    :param make: ``(energy, policy, critics) -> numpy energy``, or ``None`` where a network is unknown; an energy made of
        others calls :func:`numpy_energy` for them
    :param originals: the methods that it stands for
    """

    make: Callable[[Any, Any, NumpyNetwork], NumpyEnergy | None]
    originals: Originals


FAST_ENERGIES: dict[type, FastEnergy] = {}
"""By the exact type of the energy. Energies that are not here are computed by torch."""


def numpy_energy(energy: Any, policy: Any, critics: NumpyNetwork) -> NumpyEnergy | None:
    """An energy of a policy by its registered implementation, or ``None`` where it or a network is unknown."""
    known = FAST_ENERGIES.get(type(energy))
    return None if known is None else known.make(energy, policy, critics)


def weighed_sum(parts: Sequence[tuple[np.float32, NumpyEnergyFn]]) -> NumpyEnergyFn:
    """Weighted sum of bound energies, with its gradient."""

    def total(actions: Array) -> tuple[Array, Callable[[], Array]]:
        found = [(weight, *part(actions)) for weight, part in parts]
        values = sum(weight * values for weight, values, _ in found)
        return values, lambda: sum(weight * gradients() for weight, _, gradients in found)

    return total


def numpy_q_energy(energy: QEnergy, policy: Any, critics: NumpyNetwork) -> NumpyEnergy:
    """``-agg_i Q_i`` of scalar or quantile critics, whose value is the mean of the quantiles."""
    aggregates: dict[str, Any] = dict(mean=_mean, min=_min, lcb=partial(_lcb, energy.coefficient))
    aggregate = aggregates[energy.aggregate]

    def bind(features: Array) -> BoundEnergy:
        network = critics.bind(features)

        def bound(actions: Array) -> tuple[Array, Callable[[], Array]]:
            outputs, pull = network(actions)
            n = outputs.shape[2]
            values, slopes = aggregate(outputs[:, :, 0] if n == 1 else outputs.mean(axis=2))
            return values.reshape(actions.shape[:2]), lambda: pull(slopes()[:, :, None] * np.float32(1.0 / n))

        return BoundEnergy(bound, bound)

    return bind


FAST_ENERGIES[QEnergy] = FastEnergy(numpy_q_energy, Originals({QEnergy: ["bind", "bind_features"]}))


def numpy_sum(energy: Composite, policy: Any, critics: NumpyNetwork) -> NumpyEnergy | None:
    """The weighted sum of a ``Composite`` on numpy, or ``None`` where a term is unknown."""
    used = [(weight, term) for weight, term in zip(energy.weights or (), energy.terms, strict=True) if weight != 0.0]
    weights, terms = [np.float32(w) for w, _ in used], [numpy_energy(term, policy, critics) for _, term in used]
    if None in terms:
        return None

    def bind(features: Array) -> BoundEnergy:
        bound = [term(features) for term in terms if term is not None]
        parts = ([pair[i] for pair in bound] for i in (0, 1))
        return BoundEnergy(*(weighed_sum([*zip(weights, part, strict=True)]) for part in parts))

    return bind


FAST_ENERGIES[Composite] = FastEnergy(numpy_sum, Originals({Composite: ["bind", "named"]}))


# ``(C, R)`` Q-values -> ``(R,)`` energies and a function of their derivatives ``(C, R)`` or ``(C, 1)``


def _mean(q_values: Array) -> tuple[Array, Callable[[], Array]]:
    weights = np.full(len(q_values), -1.0 / len(q_values), np.float32)
    return weights.dot(q_values), lambda: weights[:, None]


def _min(q_values: Array) -> tuple[Array, Callable[[], Array]]:
    lowest = q_values.argmin(axis=0)
    return -q_values.min(axis=0), lambda: -(lowest == np.arange(len(q_values))[:, None]).astype(np.float32)


def _lcb(coefficient: float | None, q_values: Array) -> tuple[Array, Callable[[], Array]]:
    factor, share = np.float32(1.0 if coefficient is None else coefficient), np.float32(1.0 / len(q_values))
    mean = q_values.mean(axis=0)
    deviation = q_values - mean
    std = np.sqrt(np.square(deviation).mean(axis=0) + np.float32(SMALLEST_VARIANCE))
    return factor * std - mean, lambda: (factor * deviation / std - np.float32(1.0)) * share
