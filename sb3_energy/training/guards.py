"""Raises for NaN and infinity, before a transition is stored or a parameter changed."""

from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecNormalize

from sb3_energy.deferred import Checks, NonFiniteError, active_checks, is_host, require_finite

Records = dict[str, list[Any]]
"""Statistics of updates for the logger, by name: numbers, or scalar tensors that are read when they are logged."""

ENTROPY = "_entropy"
"""Name under which an update records the policy's entropy, which is not logged but used in the overestimation."""

READ_EVERY = 256
"""Number of updates after which their records are read, so that a long call of ``train`` keeps few scalar tensors."""


LARGEST = float(np.finfo(np.float32).max)
"""Larger numbers are infinite in single precision, in which networks compute."""


def check_finite(what: str, values: np.ndarray | dict[str, np.ndarray]) -> None:
    """
    Check that rewards or observations of an environment are finite.

    :param what: name of the values, for the message
    :param values: returned by the environment
    :raises ValueError: if one of them is NaN or infinite, or would be in single precision
    """
    if isinstance(values, dict):
        for key, part in values.items():
            check_finite(f"{what} {key!r}", part)
        return
    array = np.asarray(values)
    if array.dtype.kind != "f" or array.size == 0:  # images are integers
        return
    if not np.isfinite(array).all():
        raise ValueError(f"the {what} must be finite, got NaN or infinity from the environment; nothing was stored")
    if array.itemsize > 4 and np.abs(array).max() > LARGEST:
        raise ValueError(
            f"the {what} must be finite in single precision, got {array.flat[np.abs(array).argmax()]:g} "
            "from the environment; nothing was stored"
        )


def check_transition(
    reward: np.ndarray, new_obs: np.ndarray | dict[str, np.ndarray], infos: list[dict[str, Any]], env: VecNormalize | None
) -> None:
    """
    Check that the transitions of an environment step are finite before they are stored.

    :param reward: ``(n_envs,)``
    :param new_obs: observations after the step
    :param infos: of each environment, with the last observation of an episode that has ended
    :param env: environment that has normalized reward and observation, if any: the original ones are stored
    :raises ValueError: if something in the transitions is NaN or infinite
    """
    check_finite("reward", reward)
    check_finite("observation", new_obs)
    for info in infos:  # where an episode has ended, new_obs belongs to the next one
        if info.get("terminal_observation") is not None:
            check_finite("observation", info["terminal_observation"])
    if env is not None:
        check_finite("reward", env.get_original_reward())
        check_finite("observation", env.get_original_obs())


def guarded_step(
    optimizer: th.optim.Optimizer, loss: th.Tensor, name: str, records: Records, has_gradients: bool = False
) -> None:
    """
    Make one step of an optimizer, unless the loss or its gradient is NaN or infinite. Where checks are deferred, the step is
    skipped on the device if this check or one before it has failed.

    :param optimizer: of the loss's parameters
    :param loss: scalar
    :param name: of the loss, for the records and the message
    :param records: its value is appended
    :param has_gradients: whether its gradient is in the parameters' ``grad`` already and it has no graph
    :raises FloatingPointError: if the loss is not finite; no parameter is changed then
    :raises RuntimeError: if the loss has no graph and should have one, as in SB3
    """
    value, checks = loss.detach(), active_checks()
    require_finite(value, partial(_loss_error, name, value))
    records[name].append(value)
    if not has_gradients:
        _differentiate(optimizer, loss, name)
    _require_finite_gradients(optimizer, name, checks)
    if checks is None:
        optimizer.step()
    elif can_skip(optimizer):
        _step_unless(optimizer, checks.failed())
    else:
        checks.raise_first()
        optimizer.step()


def require_finite_gradients(optimizer: th.optim.Optimizer, name: str) -> None:
    """
    A finite loss may have an infinite gradient, as a square root has at 0. All gradients are checked by one call, that of
    ``GradScaler``, with the scale 1.

    :param optimizer: whose parameters have gradients
    :param name: of the loss, for the message
    :raises FloatingPointError: if a gradient is not finite
    """
    _require_finite_gradients(optimizer, name, active_checks())


def _require_finite_gradients(optimizer: th.optim.Optimizer, name: str, checks: Checks | None) -> None:
    gradients = [grad for group in optimizer.param_groups for x in group["params"] if (grad := x.grad) is not None]
    if not gradients:
        return
    device = gradients[0].device
    found = th.zeros((), device=device)
    try:
        th._amp_foreach_non_finite_check_and_unscale_(gradients, found, _one(device))
    except RuntimeError:  # sparse, or more than one number at one address
        dense = [grad.coalesce().values() if grad.is_sparse else grad for grad in gradients]
        found = (~th.stack([th.isfinite(grad).all() for grad in dense]).all()).float()
    if checks is not None:
        checks.append(found == 0.0, partial(_gradient_error, name))
    elif found.item():
        raise _gradient_error(name)


@lru_cache
def _one(device: th.device) -> th.Tensor:
    return th.ones((), device=device)


def require_gradients() -> None:
    """
    Check that gradients are enabled before training.

    :raises RuntimeError: if gradients are switched off; as in SB3, but before anything is changed
    """
    if not th.is_grad_enabled():
        raise RuntimeError(
            "training needs gradients, which are switched off by torch.no_grad(), torch.set_grad_enabled(False) "
            "or torch.inference_mode()"
        )


def _differentiate(optimizer: th.optim.Optimizer, loss: th.Tensor, name: str) -> None:
    if not loss.requires_grad:
        raise RuntimeError(
            f"{name} does not require grad and nothing can be learned from it: every parameter that it depends on is frozen "
            "(requires_grad=False) or detached"
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()


def can_skip(optimizer: th.optim.Optimizer) -> bool:
    """
    Check that an optimizer is fused, as conditional steps on a GPU require.

    :param optimizer: any
    :return: whether a tensor on the device can make it skip a step
    """
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return fused and type(optimizer) in (th.optim.Adam, th.optim.AdamW)


def _step_unless(optimizer: th.optim.Optimizer, failed: th.Tensor | None) -> None:
    # As GradScaler does: fused Adam reads it on the device
    optimizer.found_inf = failed  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


def _loss_error(name: str, value: th.Tensor) -> FloatingPointError:
    return NonFiniteError(
        f"{name} is {value.item()}: training stops before it changes the networks",
        "a lower learning_rate, a smaller reward scale, or backbone='layer_norm'",
    )


def _gradient_error(name: str) -> FloatingPointError:
    return NonFiniteError(
        f"the gradient of {name} contains NaN or infinity: training stops before it changes the networks",
        "a lower learning_rate, a smaller reward scale, or, of a function of your own, to keep its derivative finite",
    )


def as_floats(records: Records) -> dict[str, list[float]]:
    """
    Convert logged tensors to Python floats with a single device synchronisation.

    :param records: numbers and scalars, on any device
    :return: the same as numbers, in the same order; the host waits for the device once
    """
    flat = [value for values in records.values() for value in values]
    away = [index for index, value in enumerate(flat) if isinstance(value, th.Tensor) and not is_host(value)]
    if away:
        read = th.stack([flat[index].reshape(()).double() for index in away]).tolist()
        for index, number in zip(away, read, strict=True):
            flat[index] = number
    numbers = iter(map(float, flat))
    return {name: [next(numbers) for _ in values] for name, values in records.items()}
