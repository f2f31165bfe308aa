"""Causes of NaN or infinity, looked for only after it has appeared."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch import nn

from sb3_energy.deferred import NonFiniteError
from sb3_energy.energies import is_finite_energy, parts_of

NETWORKS = {
    "actor": "actor",
    "critic": "critic",
    "critic_target": "target critic",
    "potential": "potential",
    "head": "refiner's head",
    "q_scale": "spread of Q",
    "reverse_drift": "reverse drift",
    "behaviour_critic": "behaviour critic",
}
"""Attributes of a policy or an algorithm, and their names in error messages."""


def describe(values: th.Tensor | np.ndarray | float) -> str | None:
    """
    Name the kind of non-finite value in an array.

    :param values: numbers
    :return: ``"NaN"`` or ``"infinity"``, if one of them is, else ``None``
    """
    found = th.as_tensor(values)
    if not found.is_floating_point() or bool(th.isfinite(found).all()):
        return None
    return "NaN" if bool(th.isnan(found).any()) else "infinity"


def broken_network(owner: Any) -> str | None:
    """
    Search the networks of a policy or algorithm for non-finite parameters and running statistics.

    :param owner: a policy or an algorithm
    :return: a clause that names the first network with a parameter or running statistic that is not finite, or ``None``
    """
    for attribute, label in NETWORKS.items():
        module = getattr(owner, attribute, None)
        found = broken_module(module, label) if isinstance(module, nn.Module) else None
        if found is not None:
            return found
    return None


def broken_module(module: nn.Module, label: str) -> str | None:
    """
    Search one network for non-finite parameters and running statistics.

    :param module: a network
    :param label: its name in error messages
    :return: a clause that names its first parameter or running statistic that is not finite, or ``None``
    """
    for kind, name, tensor in _tensors(module):
        found = describe(tensor)
        if found is not None:
            return f"the {label}'s {kind} contain {found} ({name})"
    return None


@contextmanager
def named(module: nn.Module, label: str) -> Iterator[None]:
    """
    Within this context, a ``NonFiniteError`` names the network if one of its parameters is NaN or infinite.

    :param module: the network
    :param label: its name in error messages
    """
    try:
        yield
    except NonFiniteError as error:
        found = broken_module(module, label)
        if found is None:
            raise
        raise error.because(found, advised=True) from error


def _tensors(module: nn.Module) -> Iterator[tuple[str, str, th.Tensor]]:
    for name, parameter in module.named_parameters():
        yield "parameters", name, parameter.detach()
    for name, buffer in module.named_buffers():
        if "running_" in name or name == "spread":  # others may hold infinity on purpose, as masks do
            yield "statistics", name, buffer


class Cause(NamedTuple):
    """
    Why a value became non-finite, as a clause of the error message.

    :param clause: the cause of NaN or infinity
    :param advised: whether the error keeps its advice, which is about learning rates: it holds for networks that diverged, and
        not for a wrong setting
    """

    clause: str
    advised: bool = False


def policy_cause(policy: Any, of_energy: bool) -> Cause | None:
    """
    Diagnose a non-finite prediction: temperature, network parameters or energy.

    :param policy: a refined policy
    :param of_energy: whether it was an energy that was not finite
    :return: the cause of NaN or infinity in a prediction, ``None`` if unknown
    """
    temperature = policy.temperature.item()
    if not (math.isfinite(temperature) and temperature > 0.0):
        return Cause(f"the policy's temperature, which is the entropy coefficient (ent_coef), is {temperature}")
    return network_cause(policy) or (energy_cause(policy) if of_energy else None)


def network_cause(owner: Any) -> Cause | None:
    """
    Diagnose non-finite network parameters.

    :param owner: a policy or an algorithm
    :return: the first of its networks with a parameter that is NaN or infinite, or ``None``
    """
    found = broken_network(owner)
    return None if found is None else Cause(found, advised=True)


def energy_cause(policy: Any) -> Cause | None:
    """
    Diagnose an energy function that returns non-finite values itself.

    :param policy: a refined policy
    :return: its energy, if it may return NaN or infinity at finite parameters, or ``None``
    """
    if is_finite_energy(policy.energy):
        return None
    *terms, whole = ((name, energy) for name, energy in parts_of(policy.energy).items() if not is_finite_energy(energy))
    names = " or ".join(name for name, _ in terms or [whole])
    return Cause(f"energy={names} returned NaN or infinity, while all parameters are finite")
