"""What made a number of an update NaN or infinite: looked for once it has appeared, and never before."""

import math
from typing import Any

import numpy as np

from sb3_energy.policies.causes import Cause, energy_cause, network_cause
from sb3_energy.training.buffer_files import not_finite_row

LARGEST_SQUARED = float(np.finfo(np.float32).max) ** 0.5
"""The square of what is larger is infinite in single precision: losses have squares, and layer norms."""


def training_cause(model: Any, of_energy: bool) -> Cause | None:
    """
    :param model: an algorithm with a refined policy
    :param of_energy: whether it was an energy that was not finite
    :return: what made a number of an update NaN or infinite, or ``None`` if nobody knows
    """
    return (
        _setting_cause(model)
        or network_cause(model.policy)
        or network_cause(model)
        or _buffer_cause(model.replay_buffer)
        or (energy_cause(model.policy) if of_energy else None)
        or _scale_cause(model.replay_buffer)
    )


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


def _scale_cause(buffer: Any) -> Cause | None:
    """Of numbers that are finite and whose squares are not."""
    for name in ("observations", "rewards"):
        stored = getattr(buffer, name, None)
        for key, part in (stored if isinstance(stored, dict) else {"": stored}).items():
            if isinstance(part, np.ndarray) and part.dtype.kind == "f" and part.size:
                largest = max(abs(float(part.max())), abs(float(part.min())))
                if largest > LARGEST_SQUARED:
                    whose = f"{name} {key!r}" if key else name
                    return Cause(
                        f"the replay buffer's {whose} are as large as {largest:g}, whose square is infinite; scale them"
                    )
    return None
