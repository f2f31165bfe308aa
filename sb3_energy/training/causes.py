"""Causes of NaN and infinity in training: looked for after they have appeared, at no cost before."""

import math
from typing import Any

import numpy as np
from stable_baselines3.common.save_util import recursive_getattr
from torch import nn

from sb3_energy.deferred import NonFiniteError
from sb3_energy.policies.causes import NETWORKS, Cause, broken_module, broken_network, energy_cause, network_cause
from sb3_energy.training.buffer_files import not_finite_row

LARGEST_SQUARED = float(np.finfo(np.float32).max) ** 0.5
"""Larger numbers have an infinite square in single precision. Losses and layer norms compute squares."""


ADVICE = "a checkpoint from before, and a lower learning_rate"


def raise_with_cause(model: Any, error: Exception) -> None:
    """
    Raise a failed update's error again with its likely cause.

    :param model: an algorithm with a refined policy
    :param error: of an update
    :raises FloatingPointError: with the cause of the error, if it is found
    """
    met = error if isinstance(error, NonFiniteError) else NonFiniteError("an update met NaN or infinity", ADVICE)
    cause = training_cause(model, "energy" in met.what)
    if cause is not None:
        raise met.because(*cause) from error


def action_error(policy: Any, noisy: bool) -> FloatingPointError:
    """
    Build the error for a non-finite action.

    :param policy: that gave an action which is NaN or infinite
    :param noisy: whether noise was added to it
    :return: the error, with its cause
    """
    made = broken_network(policy) or ("action_noise returned NaN" if noisy else "it is NaN")
    return FloatingPointError(f"the action must be finite and was neither taken nor stored: {made}")


def training_cause(model: Any, of_energy: bool) -> Cause | None:
    """
    Diagnose why an update met a non-finite number.

    :param model: an algorithm with a refined policy
    :param of_energy: whether it was an energy that was not finite
    :return: what made a number of an update NaN or infinite, or ``None`` if it is not known
    """
    return (
        _setting_cause(model)
        or network_cause(model.policy)
        or _learned_cause(model)
        or _buffer_cause(model.replay_buffer)
        or (energy_cause(model.policy) if of_energy else None)
        or scale_cause(model.replay_buffer)
    )


def _learned_cause(model: Any) -> Cause | None:
    """Of the networks that are saved with a model and are not its policy's."""
    for name in model._get_torch_save_params()[0]:
        module, attribute = recursive_getattr(model, name), name.split(".")[-1]
        if isinstance(module, nn.Module) and attribute in NETWORKS:
            found = broken_module(module, NETWORKS[attribute])
            if found is not None:
                return Cause(found, advised=True)
    return None


def _setting_cause(model: Any) -> Cause | None:
    for name in ("gamma", "tau", "target_entropy", "distillation_coef"):
        value = getattr(model, name, 0.0)
        if isinstance(value, float) and not math.isfinite(value):
            return Cause(f"{name} is {value!r}")
    refines = not model.policy.refinement.is_identity and not model.learns_potential
    value = model._current_ent_coef().item()
    if math.isfinite(value) and (value > 0.0 or not refines):
        return None
    if model.log_ent_coef is None:
        return Cause(f"the entropy coefficient (ent_coef) is {value}")
    how = "overflowed" if value > 0.0 else "vanished" if value == 0.0 else "is NaN"
    log = model.log_ent_coef.item()
    return Cause(
        f"the learned entropy coefficient (ent_coef) {how}, with logarithm {log:g}; check learning_rate and target_entropy, "
        "or fix ent_coef"
    )


def _buffer_cause(buffer: Any) -> Cause | None:
    found = not_finite_row(buffer)
    return None if found is None else Cause(f"the replay buffer has NaN or infinity in {found}")


def scale_cause(buffer: Any, called: str = "replay buffer") -> Cause | None:
    """
    Find finite numbers whose squares are infinite.

    :param buffer: whatever has ``observations`` and ``rewards``, arrays or dictionaries of arrays
    :param called: what it is, for the message
    :return: the numbers, or ``None``
    """
    for name in ("observations", "rewards"):
        stored = getattr(buffer, name, None)
        for key, part in (stored if isinstance(stored, dict) else {"": stored}).items():
            if isinstance(part, np.ndarray) and part.dtype.kind == "f" and part.size:
                largest = max(abs(float(part.max())), abs(float(part.min())))
                if largest > LARGEST_SQUARED:
                    whose = f"{name} {key!r}" if key else name
                    return Cause(f"the {called}'s {whose} are as large as {largest:g}, whose square is infinite; scale them")
    return None
