"""Small networks as functions of numpy arrays, where torch's time goes into its calls: few rows, no graph."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from torch import nn

from sb3_energy.networks.array_activations import ACTIVATIONS, is_supported
from sb3_energy.networks.array_layers import Array, Layer, LayerNorm, Linear, Residual, attach_all, view
from sb3_energy.networks.backbones import BroBlock, SimbaBlock
from sb3_energy.networks.by_hand.untouched import calls_are_original, is_untouched
from sb3_energy.networks.watched import Watched

MAX_PROGRAMS = 4
"""How many numbers of rows a network keeps its arrays for."""

_BLOCKS = (SimbaBlock, BroBlock)


class ArrayNetwork:
    """
    An ensemble of ``C`` equal networks on views of their parameters, with the gradient with respect to their last inputs.

    For layers ``h_k = f_k(h_{k-1})`` the gradient ``g_{k-1} = J_kᵀ g_k`` is pulled back layer by layer; each layer's docstring
    has its ``J_kᵀ g``. The first layer is linear, ``W_s s + W_a a + b``: :meth:`encode` computes the share ``W_s s + b`` of an
    observation once, whatever the number of actions, and the pull ends with ``W_aᵀ g``.

    Parameters that change in place are seen at once, or at the next :meth:`encode`. When one gets other memory, or a layer is
    another one, :meth:`is_current` says so. Made by :meth:`of`. Not for two threads at once: arrays are used again.

    :param networks: the members
    :param n_actions: how many of the last inputs are actions
    :param structure: their layers, one list of members for each
    """

    def __init__(self, networks: Sequence[nn.Module], n_actions: int, structure: list[list[Any]]):
        self._structure, self._n_actions = structure, n_actions
        self._watched = Watched([module for network in networks for module in network.modules()])
        weights = [view(module.weight) for module in structure[0]]
        self.n_members, (self.width, n_inputs) = len(weights), weights[0].shape
        self.n_features = n_inputs - n_actions
        biases = [None if module.bias is None else view(module.bias) for module in structure[0]]
        self._encoders = list(zip([weight[:, : self.n_features].T for weight in weights], biases, strict=True))
        # One observation: a product with whole rows takes half the time of one with parts of them, zeros in place of actions
        self._inputs, self._one = np.zeros(n_inputs, np.float32), np.empty((self.n_members, 1, self.width), np.float32)
        self._input_features = self._inputs[: self.n_features]
        self._encoders_of_one = list(zip([weight.T for weight in weights], biases, strict=True))
        self.action_weights = [weight[:, self.n_features :] for weight in weights]
        self._programs: dict[int, Program] = {}
        self.n_outputs = self.program(1).n_outputs

    @classmethod
    def of(cls, *networks: nn.Module, n_actions: int = 0) -> "ArrayNetwork | None":
        """
        :param networks: the members: ``nn.Linear``, or ``nn.Sequential`` of ``nn.Linear`` (which is first), ``nn.LayerNorm``,
            ``SimbaBlock``, ``BroBlock``, ``nn.Identity`` and ``ACTIVATIONS``, equal in everything but their parameters
        :param n_actions: how many of the last inputs are actions
        :return: the network, or ``None`` where they are anything else, have hooks, or are not 32-bit on the CPU
        """
        modules = [module for network in networks for module in network.modules()]
        if not modules or not calls_are_original() or not all(map(_is_plain, modules)):
            return None
        structure = _structure(networks)
        if structure is None or not structure or not isinstance(structure[0][0], nn.Linear):
            return None
        return cls(networks, n_actions, structure)

    def is_current(self) -> bool:
        """
        :return: whether the members have the layers and the memory they had, and no hooks
        """
        return self._watched.is_unchanged()

    def encode(self, features: Array) -> Array:
        """
        :param features: ``(B, F)``
        :return: ``(C, B, H)``, their share of the first layer; that of a single one is overwritten by the next call
        """
        if len(features) == 1:
            self.encode_into(features, self._one[:, 0])
            return self._one
        shared = np.empty((self.n_members, len(features), self.width), np.float32)
        self.encode_into(features, shared)
        return shared

    def encode_into(self, features: Array, out: Array) -> None:
        """
        :param features: ``(B, F)``
        :param out: ``(C, B, H)``, or ``(C, H)`` where ``B = 1``, for their share of the first layer
        """
        inputs, encoders = features, self._encoders
        if len(features) == 1:
            inputs, encoders = features[0], self._encoders_of_one
            if self._n_actions > 0:
                np.copyto(self._input_features, inputs)
                inputs = self._inputs
        for member, (weight, bias) in zip(out, encoders, strict=True):
            inputs.dot(weight, member)
            if bias is not None:
                np.add(member, bias, member)

    def __call__(self, features: Array) -> Array:
        """
        :param features: ``(B, F)``, all inputs
        :return: ``(C, B, O)``, overwritten by the next call with as many rows
        """
        return self.program(len(features)).forward(features)

    def program(self, n_rows: int) -> "Program":
        """
        :param n_rows: how many rows
        :return: the layers, bound to arrays of so many rows
        """
        program = self._programs.get(n_rows)
        if program is None:
            while len(self._programs) >= MAX_PROGRAMS:
                del self._programs[next(iter(self._programs))]
            program = self._programs[n_rows] = Program(self, n_rows, self._structure)
        return program


class Program:
    """
    The layers of an :class:`ArrayNetwork` on arrays of ``R`` rows. What its methods return is overwritten by their next call.

    :param network: whose layers
    :param n_rows: ``R``
    :param structure: the layers, one list of members for each
    """

    def __init__(self, network: ArrayNetwork, n_rows: int, structure: list[list[Any]]):
        self._network = network
        c, rows, width, n_actions = network.n_members, n_rows, network.width, len(network.action_weights[0].T)
        self._hidden = np.empty((c, width) if rows == 1 else (c, rows, width), np.float32)
        self._layers = _bound(structure[1:], self._hidden)
        self._out = self._layers[-1].out if self._layers else self._hidden
        self._outputs = self._out.reshape(c, rows, -1)
        self.n_outputs = self._outputs.shape[2]
        self._gradient: Array | None = None
        self._actions = np.empty((rows, n_actions), np.float32)
        self._action = self._actions[0]
        self._forwards = [layer.forward for layer in self._layers]
        # One row: the members' matrices side by side, so that one product serves all of them
        self._stack = np.empty((n_actions, c * width), np.float32) if rows == 1 else None
        self._copies = [copy for layer in self._layers for copy in layer.copies]
        if self._stack is not None and n_actions > 0:
            originals = [weight.T for weight in network.action_weights]
            self._copies += zip(np.split(self._stack, c, axis=1), originals, strict=True)
        self._action_weights = network.action_weights
        self._flat = self._hidden.reshape(-1)

    def bind(self, shared: Array) -> None:
        """
        :param shared: ``(C, B, H)``, what ``encode`` returned; ``R`` is ``B`` times the number of actions for each
        """
        if self._stack is not None:
            self._shared = shared.reshape(-1)
        else:
            n = self._actions.shape[0] // shared.shape[1]
            self._shared = shared[:, :, None]
            self._by_observation = self._hidden.reshape(*shared.shape[:2], n, shared.shape[2])
        for copy, original in self._copies:
            np.copyto(copy, original)

    def forward(self, features: Array) -> Array:
        """
        :param features: ``(R, F)``, all inputs of a network without actions
        :return: ``(C, R, O)``
        """
        self._network.encode_into(features, self._hidden)
        for copy, original in self._copies:
            np.copyto(copy, original)
        for forward in self._forwards:
            forward()
        return self._outputs

    def outputs(self, actions: Array) -> Array:
        """
        :param actions: ``(R, A)``, for the observations that were bound
        :return: ``(C, R, O)``
        """
        if self._stack is not None:
            actions[0].dot(self._stack, self._flat)
            np.add(self._flat, self._shared, self._flat)
        else:
            for hidden, weight in zip(self._hidden, self._action_weights, strict=True):
                actions.dot(weight.T, hidden)
            np.add(self._by_observation, self._shared, self._by_observation)
        for forward in self._forwards:
            forward()
        return self._outputs

    def pull(self, cotangents: Array) -> Array:
        """
        :param cotangents: ``(C, R, O)``, or what broadcasts to it, at the actions of the last :meth:`outputs`
        :return: ``(R, A)``, the gradient of the sum of outputs times cotangents with respect to the actions
        """
        if self._gradient is None:
            self._gradient = np.empty_like(self._out)
            self._cotangents = self._gradient.reshape(self._outputs.shape)
            self._pulled = attach_all(self._layers, self._gradient)
            self._pulled_flat, self._pulls = self._pulled.reshape(-1), [layer.pull for layer in reversed(self._layers)]
        np.copyto(self._cotangents, cotangents)
        for pull in self._pulls:
            pull()
        if self._stack is not None:
            self._pulled_flat.dot(self._stack.T, self._action)
            return self._actions
        np.dot(self._pulled[0], self._action_weights[0], self._actions)
        for gradient, weight in zip(self._pulled[1:], self._action_weights[1:], strict=True):
            self._actions += gradient.dot(weight)
        return self._actions


def _is_plain(module: nn.Module) -> bool:
    """Whether a module does what its class says, on parameters that numpy can see."""
    return is_untouched(module) and all(
        type(p) in (nn.Parameter, th.Tensor) and p.dtype == th.float32 and p.device.type == "cpu" and p.layout == th.strided
        for p in module._parameters.values()
        if p is not None
    )


def _structure(networks: Sequence[nn.Module]) -> list[list[Any]] | None:
    """The layers of the members, place by place; ``None`` where they differ or one is unknown."""
    if type(networks[0]) is nn.Linear:
        places: list[list[Any]] = [list(networks)]
    elif type(networks[0]) is nn.Sequential and all(type(n) is nn.Sequential for n in networks):
        layers = [list(network) for network in networks]  # type: ignore[call-overload]
        if len({len(of_member) for of_member in layers}) > 1:
            return None
        places = [list(place) for place in zip(*layers, strict=True)]
    else:
        return None
    return places if all(map(_is_known, places)) else None


def _is_known(place: list[Any]) -> bool:
    first = place[0]
    if any(type(module) is not type(first) for module in place):
        return False
    if type(first) in (nn.Linear, nn.LayerNorm):
        is_flat = type(first) is nn.Linear or len(first.normalized_shape) == 1
        return is_flat and len({_signature(module) for module in place}) == 1
    if type(first) in _BLOCKS:
        return _structure([module.layers for module in place]) is not None
    return type(first) is nn.Identity or is_supported(place)


def _signature(module: nn.Module) -> tuple[Any, ...]:
    shapes = tuple(None if p is None else tuple(p.shape) for p in module._parameters.values())
    return (*shapes, getattr(module, "eps", None))


def _bound(structure: Sequence[list[Any]], x: Array) -> list[Layer]:
    layers: list[Layer] = []
    for place in structure:
        layer = _layer(place, x)
        if layer is not None:
            layers.append(layer)
            x = layer.out
    return layers


def _layer(place: list[Any], x: Array) -> Layer | None:
    first = place[0]
    if isinstance(first, nn.Identity):
        return None
    if isinstance(first, nn.Linear):
        return Linear(place, x)
    if isinstance(first, nn.LayerNorm):
        return LayerNorm(place, x)
    if isinstance(first, _BLOCKS):
        inner = _structure([module.layers for module in place])
        assert inner is not None  # was looked at before
        return Residual(_bound(inner, x), x)
    return ACTIVATIONS[type(first)](first, x)
