"""What made a number NaN or infinite: looked for once it has appeared, and never before."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from torch import nn

from sb3_energy.energies import FINITE, energy_name

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
"""Attributes of a policy or an algorithm, and what users call them."""

STORED = ("observations", "next_observations", "actions", "rewards")


def describe(values: th.Tensor | np.ndarray | float) -> str | None:
    """
    :param values: numbers
    :return: ``"NaN"`` or ``"infinity"``, if one of them is, else ``None``
    """
    found = th.as_tensor(values)
    if not found.is_floating_point() or bool(th.isfinite(found).all()):
        return None
    return "NaN" if bool(th.isnan(found).any()) else "infinity"


def broken_network(owner: Any) -> str | None:
    """
    :param owner: a policy or an algorithm
    :return: which of its networks has a parameter or a running statistic that is not finite
    """
    for attribute, label in NETWORKS.items():
        module = getattr(owner, attribute, None)
        if isinstance(module, nn.Module):
            for kind, name, tensor in _tensors(module):
                found = describe(tensor)
                if found is not None:
                    return f"the {label}'s {kind} contain {found} ({name})"
    return None


def _tensors(module: nn.Module) -> Iterator[tuple[str, str, th.Tensor]]:
    for name, parameter in module.named_parameters():
        yield "parameters", name, parameter.detach()
    for name, buffer in module.named_buffers():
        if "running_" in name or name == "spread":  # others may hold infinity on purpose, as masks do
            yield "statistics", name, buffer


def policy_cause(policy: Any, of_energy: bool = True) -> str | None:
    """
    :param policy: a refined policy
    :param of_energy: whether it was an energy that was not finite
    :return: what made a number of a prediction NaN or infinite, a clause, or ``None`` if nobody knows
    """
    cause = broken_network(policy)
    if cause is not None:
        return cause
    temperature = policy.temperature.item()
    if not (math.isfinite(temperature) and temperature > 0.0):
        return f"the policy's temperature, which is the entropy coefficient, is {temperature}"
    return own_energy(policy) if of_energy else None


def own_energy(policy: Any) -> str | None:
    """
    :param policy: whose networks are all finite
    :return: its energy, if that is none which is finite wherever they are
    """
    if type(policy.energy) in FINITE:
        return None
    return f"energy={energy_name(policy.energy)} returned NaN or infinity, while the networks' parameters are finite"


def training_cause(model: Any, error: FloatingPointError) -> str | None:
    """
    :param model: an algorithm with a refined policy
    :param error: what appeared
    :return: what made a number of an update NaN or infinite, a clause, or ``None`` if nobody knows
    """
    of_energy = "energy" in str(error)
    return (
        _broken_setting(model)
        or broken_network(model.policy)
        or broken_network(model)
        or _broken_buffer(model.replay_buffer)
        or (own_energy(model.policy) if of_energy else None)
    )


def _broken_setting(model: Any) -> str | None:
    for name in ("gamma", "tau", "target_entropy", "distillation_coef"):
        value = getattr(model, name, 0.0)
        if isinstance(value, float) and not math.isfinite(value):
            return f"{name} is {value!r}"
    return entropy_coefficient_cause(model)


def entropy_coefficient_cause(model: Any) -> str | None:
    """
    :param model: an algorithm with an entropy coefficient, fixed or learned
    :return: what is wrong with it, or ``None``
    """
    refines = not model.policy.refinement.is_identity and not model.learns_potential
    value = model._current_ent_coef().item()
    if math.isfinite(value) and (value > 0.0 or not refines):
        return None
    if model.log_ent_coef is None:
        return f"the entropy coefficient (ent_coef) is {value}"
    log = model.log_ent_coef.item()
    how = "overflowed" if value > 0.0 else "vanished" if value == 0.0 else "is NaN"
    return (
        f"the learned entropy coefficient (ent_coef) {how}: it is {value}, with logarithm {log:g}; "
        "check target_entropy, or fix ent_coef"
    )


def _broken_buffer(buffer: Any) -> str | None:
    for name in STORED:
        stored = getattr(buffer, name, None)
        for key, part in (stored if isinstance(stored, dict) else {"": stored}).items():
            if isinstance(part, np.ndarray) and part.dtype.kind == "f" and not np.isfinite(part).all():
                return f"the replay buffer's {name}{f' {key!r}' if key else ''} contain NaN or infinity"
    return None
