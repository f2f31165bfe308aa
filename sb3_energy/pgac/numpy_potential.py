"""The energies of a potential on numpy, for fast predictions."""

from collections.abc import Callable
from typing import Any

import numpy as np
from stable_baselines3.common.preprocessing import get_action_dim

from sb3_energy.energies import GuidedPotential, PotentialEnergy, QEnergy
from sb3_energy.networks import Originals, PotentialNetwork, is_untouched
from sb3_energy.pgac.q_scale import QScale
from sb3_energy.policies.fast_predict.numpy_energies import (
    BoundEnergy,
    FastEnergy,
    NumpyEnergy,
    NumpyEnergyFn,
    numpy_q_energy,
    weighed_sum,
)
from sb3_energy.policies.fast_predict.numpy_networks import Array, BoundNetwork, NumpyNetwork


def numpy_potential(energy: Any, policy: Any, critics: NumpyNetwork) -> NumpyEnergy | None:
    """``V / ε + E_Q / T`` of a ``PotentialEnergy`` or ``GuidedPotential``, or ``None`` where a network is unknown."""
    potential, spread = policy.potential, policy.q_scale
    known = type(potential) is PotentialNetwork and type(spread) is QScale and "bind" not in potential.__dict__
    n_actions = get_action_dim(policy.action_space)
    network = NumpyNetwork.of(potential.network, n_actions=n_actions) if known and is_untouched(potential) else None
    if network is None:
        return None
    guided = isinstance(energy, GuidedPotential) and energy.guidance > 0.0
    q_energy = numpy_q_energy(QEnergy(energy.aggregate, energy.coefficient), policy, critics) if guided else None
    inverse = np.float32(1.0 / energy.temperature)

    def bind(features: Array) -> BoundEnergy:
        values = (inverse, _values(network.bind(features)))
        if q_energy is None:
            return BoundEnergy(weighed_sum([values]), weighed_sum([values]))
        factor = _ONE / np.float32(energy.temperature_of_q(spread.spread.detach()))  # of now, as the networks are
        guided = (factor, q_energy(features).energy)
        return BoundEnergy(weighed_sum([values, guided]), weighed_sum([guided]))

    return bind


def _values(network: BoundNetwork) -> NumpyEnergyFn:
    def values(actions: Array) -> tuple[Array, Callable[[], Array]]:
        outputs, pull = network(actions)
        return outputs.reshape(actions.shape[:2]), lambda: pull(_ONE)

    return values


_ONE = np.full((), 1.0, np.float32)
_ORIGINALS = Originals(
    {
        PotentialNetwork: ["forward", "bind"],
        QEnergy: ["bind", "bind_features"],
        PotentialEnergy: ["bind"],
        GuidedPotential: ["bind", "temperature_of_q"],
    }
)
FAST_POTENTIALS = dict.fromkeys((PotentialEnergy, GuidedPotential), FastEnergy(numpy_potential, _ORIGINALS))
