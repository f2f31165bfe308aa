"""The energies of a learned potential as functions of numpy arrays: values and gradients."""

from typing import Any

import numpy as np
from torch import nn

from sb3_energy.energies import GuidedPotential, PotentialEnergy, QEnergy
from sb3_energy.networks import ArrayNetwork, PotentialNetwork
from sb3_energy.policies.fast_predict.numpy_energy import Array, ArrayEnergy, BoundNetwork
from sb3_energy.policies.q_scale import QScale


class ArrayPotential:
    """
    :class:`sb3_energy.energies.GuidedPotential` or :class:`sb3_energy.energies.PotentialEnergy` of actions scaled to
    [-1, 1], at the observations that were bound last: ``(V + factor E_Q) / ε``, where the factor of the critic's energy is
    ``λ`` over the spread of Q, or ``λ``.

    :param energy: how potential and critic become one
    :param potential: the potential
    :param critic: the critics
    :param q_scale: the spread of Q
    """

    def __init__(
        self, energy: GuidedPotential | PotentialEnergy, potential: ArrayNetwork, critic: ArrayNetwork, q_scale: QScale
    ):
        self._potential, self._q_scale = BoundNetwork(potential), q_scale
        self._inverse = np.float32(1.0 / energy.temperature)
        self._critic: ArrayEnergy | None = None
        self._guidance, self._normalizes = np.float32(0.0), False
        if isinstance(energy, GuidedPotential) and energy.guidance > 0.0:
            self._critic = ArrayEnergy(QEnergy(energy.aggregate, energy.coefficient), critic)
            self._guidance, self._normalizes = np.float32(energy.guidance), energy.normalize_q
        self._ones = np.ones((1, 1, 1), np.float32)

    @staticmethod
    def network_of(policy: Any, action_dim: int) -> ArrayNetwork | None:
        """
        :param policy: a policy with a potential
        :param action_dim: ``A``
        :return: the potential on arrays, or ``None`` where it is none that is known
        """
        if type(policy.potential) is not PotentialNetwork or type(policy.potential.network) is not nn.Sequential:
            return None
        return ArrayNetwork.of(policy.potential.network, n_actions=action_dim)

    def bind(self, features: Array) -> None:
        """
        :param features: ``(B, F)`` of observations, which are encoded once
        """
        self._potential.bind(features)
        if self._critic is not None:
            self._critic.bind(features)
            self._factor = self._guidance
            if self._normalizes:
                self._factor = self._guidance / self._q_scale.spread.detach().numpy()  # of now, as the networks are

    def __call__(self, actions: Array) -> Array:
        """
        :param actions: ``(B, N, A)``
        :return: ``(B, N)``
        """
        values = self._values(actions)
        if self._critic is not None:
            values = values + self._factor * self._critic(actions)
        return values * self._inverse

    def with_gradients(self, actions: Array) -> tuple[Array, Array]:
        """
        :param actions: ``(B, N, A)``
        :return: energies ``(B, N)`` and their gradients ``(B, N, A)``, which the next call overwrites
        """
        values, gradients = self._values(actions), self._potential.pull(self._ones).reshape(actions.shape)
        if self._critic is not None:
            q_values, q_gradients = self._critic.with_gradients(actions)
            values = values + self._factor * q_values
            gradients += np.multiply(q_gradients, self._factor, q_gradients)
        return values * self._inverse, np.multiply(gradients, self._inverse, gradients)

    def of_starts(self, actions: Array) -> Array:
        """
        :param actions: ``(B, N, A)``
        :return: ``(B, N)``, what chooses between places that are far apart: the guidance alone, where there is one
        """
        if self._critic is None:
            return self(actions)
        return self._critic(actions) * (self._factor * self._inverse)

    def _values(self, actions: Array) -> Array:
        return self._potential.outputs(actions).reshape(actions.shape[:2])
