"""The critic's energy and what a refiner makes of it, as functions of numpy arrays: values and gradients."""

import math
from typing import NamedTuple, Protocol

import numpy as np

from sb3_energy.energies import QEnergy
from sb3_energy.energies.q_ensemble import SMALLEST_VARIANCE
from sb3_energy.networks import ArrayNetwork
from sb3_energy.refinement.bases import LARGEST_ACTION

Array = np.ndarray

_ONE, _TWO = np.full((), 1.0, np.float32), np.full((), 2.0, np.float32)


class ArrayGaussian(NamedTuple):
    """
    The base before the squash.

    :param mean: ``(B, 1, A)``
    :param std: ``(B, 1, A)``
    """

    mean: Array
    std: Array


class BoundArrayEnergy(Protocol):
    """What a refinement on arrays asks of an energy that knows its observations."""

    def __call__(self, actions: Array) -> Array:
        """``(B, N, A)`` actions scaled to [-1, 1] -> ``(B, N)``."""
        ...

    def with_gradients(self, actions: Array) -> tuple[Array, Array]:
        """The same, and the gradients ``(B, N, A)``, which the next call overwrites."""
        ...

    def of_starts(self, actions: Array) -> Array:
        """``(B, N)``, what says how good a place is to start at."""
        ...


class BoundNetwork:
    """
    A network at the observations that were bound last, for any number of actions at each.

    :param network: of observations and actions
    """

    def __init__(self, network: ArrayNetwork):
        self._network = network

    def bind(self, features: Array) -> None:
        """
        :param features: ``(B, F)`` of observations, which are encoded once
        """
        self._shared = self._network.encode(features)
        self._n = 0  # actions for each observation that the program is bound for

    def outputs(self, actions: Array) -> Array:
        """
        :param actions: ``(B, N, A)``
        :return: ``(C, B N, O)``, overwritten by the next call
        """
        n = actions.shape[1]
        if n != self._n:
            self._program = self._network.program(actions.shape[0] * n)
            self._program.bind(self._shared)
            self._n = n
        return self._program.outputs(actions.reshape(-1, actions.shape[2]))

    def pull(self, cotangents: Array) -> Array:
        """
        :param cotangents: ``(C, B N, O)``, or what broadcasts to it, at the actions of the last :meth:`outputs`
        :return: ``(B N, A)``, the gradient of outputs times cotangents, overwritten by the next call
        """
        return self._program.pull(cotangents)


class ArrayEnergy:
    """
    :class:`sb3_energy.energies.QEnergy` of actions scaled to [-1, 1], at the observations that were bound last.

    :param energy: how the members' values become one
    :param network: the critics
    """

    def __init__(self, energy: QEnergy, network: ArrayNetwork):
        self._aggregate = energy.aggregate
        self._coefficient = 1.0 if energy.coefficient is None else energy.coefficient
        self._critics, c = BoundNetwork(network), network.n_members
        self._n_outputs = network.n_outputs
        self._weights = np.full(c, -1.0 / c, np.float32)
        self._mean_slopes = np.full((c, 1, 1), -1.0 / (c * network.n_outputs), np.float32)

    def bind(self, features: Array) -> None:
        """
        :param features: ``(B, F)`` of observations, which are encoded once
        """
        self._critics.bind(features)

    def __call__(self, actions: Array) -> Array:
        """
        :param actions: ``(B, N, A)``
        :return: ``(B, N)``
        """
        return self._energies(self._q_values(actions)).reshape(actions.shape[:2])

    def with_gradients(self, actions: Array) -> tuple[Array, Array]:
        """
        :param actions: ``(B, N, A)``
        :return: energies ``(B, N)`` and their gradients ``(B, N, A)``, which the next call overwrites
        """
        q_values = self._q_values(actions)
        gradients = self._critics.pull(self._slopes(q_values))
        return self._energies(q_values).reshape(actions.shape[:2]), gradients.reshape(actions.shape)

    def of_starts(self, actions: Array) -> Array:
        """
        :param actions: ``(B, N, A)``
        :return: ``(B, N)``, what says how good a place is to start at: the energy itself
        """
        return self(actions)

    def _q_values(self, actions: Array) -> Array:
        """``(C, R)``: of quantile critics the mean of the quantiles."""
        outputs = self._critics.outputs(actions)
        return outputs[:, :, 0] if outputs.shape[2] == 1 else outputs.mean(axis=2)

    def _energies(self, q_values: Array) -> Array:
        if self._aggregate == "mean":
            return self._weights.dot(q_values)
        if self._aggregate == "min":
            return -q_values.min(axis=0)
        mean = q_values.mean(axis=0)
        return self._coefficient * _spread(q_values, mean) - mean

    def _slopes(self, q_values: Array) -> Array:
        """The derivatives of the energy with respect to what the members give, ``(C, R, 1)`` or ``(C, 1, 1)``."""
        if self._aggregate == "mean":
            return self._mean_slopes
        n_outputs = self._n_outputs  # each quantile has its part of the member's value
        if self._aggregate == "min":
            lowest = q_values.argmin(axis=0) == np.arange(len(q_values))[:, None]
            return (lowest * np.float32(-1.0 / n_outputs))[:, :, None]
        mean = q_values.mean(axis=0)
        slopes = self._coefficient * (q_values - mean) / _spread(q_values, mean) - 1.0
        return (slopes / (len(q_values) * n_outputs))[:, :, None]


def _spread(q_values: Array, mean: Array) -> Array:
    return np.sqrt(np.square(q_values - mean).mean(axis=0) + SMALLEST_VARIANCE)


class Coordinates:
    """
    Where particles move: actions before the squash, or in a box with mirrors.
    The arrays' counterpart of :class:`sb3_energy.refinement.boxes.Box`.

    :param reflects: whether the walls are mirrors
    """

    def __init__(self, reflects: bool):
        self.reflects = reflects

    def scale(self, base: ArrayGaussian) -> Array:
        """
        :param base: ``B`` Gaussians before the squash
        :return: ``(B, 1, A)``, how wide they are in these coordinates, for a preconditioner
        """
        if not self.reflects:
            return np.minimum(base.std, _ONE)
        mean = np.tanh(base.mean)
        return np.clip(base.std * (1.0 - mean * mean), 0.02, 0.5)

    def start(self, u: Array) -> Array:
        """
        :param u: ``(B, N, A)``, before the squash
        :return: coordinates
        """
        return np.tanh(u) if self.reflects else u

    def end(self, x: Array) -> Array:
        """
        :param x: ``(B, N, A)``, coordinates
        :return: the same before the squash
        """
        return np.arctanh(np.clip(_folded(x), -LARGEST_ACTION, LARGEST_ACTION)) if self.reflects else x

    def actions(self, x: Array) -> Array:
        """
        :param x: ``(B, N, A)``, coordinates
        :return: actions scaled to [-1, 1]
        """
        return _folded(x) if self.reflects else np.tanh(x)

    def slopes(self, x: Array, actions: Array) -> Array:
        """
        :param x: ``(B, N, A)``, coordinates
        :param actions: what :meth:`actions` made of them
        :return: the derivative of each action
        """
        if self.reflects:
            return np.sign(np.remainder(x - 1.0, 4.0) - 2.0)
        squares = actions * actions
        return np.subtract(_ONE, squares, squares)


def _folded(x: Array) -> Array:
    return np.abs(np.remainder(x - 1.0, 4.0) - 2.0) - 1.0


def log_tanh_jacobian(u: Array) -> Array:
    """
    :param u: ``(B, N, A)``
    :return: ``(B, N)``, ``Σ log(1 - tanh² u)`` without cancellation
    """
    size = np.abs(u)
    return (2.0 * (math.log(2.0) - size - np.log(1.0 + np.exp(-2.0 * size)))).sum(axis=-1)


class ArrayTarget:
    """
    What a refiner is asked to draw from or to descend, in its coordinates.

    :param energy: of actions
    :param coordinates: the refiner's
    :param temperature: of a sampler; ``None``: for a descent, which follows the energy itself
    :param anchor: ``(B, N, A)`` actions from which a trust region is measured (``None``: there is none)
    :param trust_region: its step ``Δt``
    """

    def __init__(
        self,
        energy: BoundArrayEnergy,
        coordinates: Coordinates,
        temperature: float | None,
        anchor: Array | None = None,
        trust_region: float | None = None,
    ):
        self.coordinates, self._energy = coordinates, energy
        self._inverse = None if temperature is None else np.float32(1.0 / temperature)
        self._jacobian = temperature is not None and not coordinates.reflects
        self._anchor, self._trust_region = anchor, trust_region

    def raw(self, x: Array) -> Array:
        """
        :param x: ``(B, N, A)``, coordinates
        :return: ``(B, N)``, the energy alone
        """
        return self._energy(self.coordinates.actions(x))

    def raw_with_gradients(self, x: Array) -> tuple[Array, Array]:
        """
        :param x: ``(B, N, A)``, coordinates
        :return: ``(B, N)`` the energy alone, and ``(B, N, A)`` the gradients of the whole target
        """
        actions = self.coordinates.actions(x)
        raw, gradients = self._energy.with_gradients(actions)
        if self._anchor is not None:
            gradients = gradients + (actions - self._anchor) / self._trust_region
        gradients = np.multiply(gradients, self.coordinates.slopes(x, actions))
        if self._inverse is not None:
            gradients *= self._inverse
        if self._jacobian:
            gradients += _TWO * actions  # of -log(1 - tanh² u)
        return raw, gradients

    def whole(self, x: Array, raw: Array) -> Array:
        """
        :param x: ``(B, N, A)``, coordinates
        :param raw: the energy alone there
        :return: ``(B, N)``, what the refiner compares: with trust region, temperature and Jacobian
        """
        if self._anchor is not None and self._trust_region is not None:
            distance = self.coordinates.actions(x) - self._anchor
            raw = raw + np.square(distance).sum(axis=-1) / (2.0 * self._trust_region)
        if self._inverse is not None:
            raw = raw * self._inverse
        return raw - log_tanh_jacobian(x) if self._jacobian else raw
