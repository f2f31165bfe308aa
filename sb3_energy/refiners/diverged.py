"""What is said when an energy is not finite while a refiner is at work."""

from functools import partial

import torch as th

from sb3_energy.deferred import NonFiniteError, require
from sb3_energy.types import Refiner, Tick


def refuse_diverged(refiner: Refiner, tick: Tick | None, diverged: th.Tensor) -> None:
    """
    :param refiner: which one was at work
    :param tick: at which step, ``None`` before the first one
    :param diverged: ``(B, ...)`` where the energy is not finite
    :raises FloatingPointError: if anything has, with a sentence that says where and what to try
    """
    require(~diverged.any(), partial(diverged_error, refiner, tick, diverged))


def diverged_error(refiner: Refiner, tick: Tick | None, diverged: th.Tensor) -> FloatingPointError:
    """
    :param refiner: which one was at work
    :param tick: at which step, ``None`` before the first one
    :param diverged: ``(B, ...)`` where the energy is not finite
    :return: a sentence that says where and what to try
    """
    step = "before the first step" if tick is None else f"at step {tick.step + 1} of {tick.n_steps}"
    observation = int(diverged.reshape(len(diverged), -1).any(dim=1).nonzero()[0])
    return NonFiniteError(
        f"a non-finite energy appeared {step} while {type(refiner).__name__} refined the actions of observation "
        f"{observation} of a batch of {len(diverged)}",
        "a lower learning_rate, a smaller step_size, or backbone='layer_norm'",
    )
