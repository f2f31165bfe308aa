"""Stops at NaN or infinity, before anything is stored or changed."""

from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch as th

from sb3_energy.deferred import NonFiniteError, active_checks, is_host, require, require_finite

Records = dict[str, list[Any]]
"""What is logged of updates, by name: numbers, or scalars that are read when they are logged."""

ENTROPY = "_entropy"
"""Under this name an update records the policy's entropy, which is remembered and not logged."""

READ_EVERY = 256
"""After how many updates their records are read: a long call of ``train`` must not fill the memory with scalars."""


LARGEST = float(np.finfo(np.float32).max)
"""What is larger becomes infinite where networks see it: they compute in single precision."""


def check_finite(what: str, values: np.ndarray | dict[str, np.ndarray]) -> None:
    """
    :param what: the name of the values, for the message
    :param values: what the environment returned
    :raises ValueError: if one of them is NaN or infinite, or will be in single precision
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


def guarded_step(
    optimizer: th.optim.Optimizer, loss: th.Tensor, name: str, records: Records, has_gradients: bool = False
) -> None:
    """
    One step of an optimiser, unless the loss is NaN or infinity. Where checks are put off, it is not made either once one of
    them, this or another before it, has failed.

    :param optimizer: of the parameters that the loss is to change
    :param loss: scalar
    :param name: of the loss, for the records and the message
    :param records: where its value is appended
    :param has_gradients: whether its derivatives are in the parameters' ``grad`` already and it has no graph
    :raises FloatingPointError: if the loss is not finite; no parameter is changed then
    :raises RuntimeError: if the loss has no graph and should have one, as in SB3
    """
    value = loss.detach()
    require_finite(value, partial(_loss_error, name, value))
    records[name].append(value)
    if not has_gradients:
        _differentiate(optimizer, loss, name)
    require_finite_gradients(optimizer, name)
    checks = active_checks()
    if checks is None:
        optimizer.step()
    elif can_skip(optimizer):
        _step_unless(optimizer, checks.failed())
    else:
        checks.raise_first()
        optimizer.step()


def require_finite_gradients(optimizer: th.optim.Optimizer, name: str) -> None:
    """
    A loss may be finite and its gradient not, as that of a root at 0. One call looks at all gradients: the one by which a
    ``GradScaler`` does it, here with the scale 1, which leaves them as they are.

    :param optimizer: whose parameters have gradients
    :param name: of the loss, for the message
    :raises FloatingPointError: if a gradient is not finite
    """
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
    if active_checks() is not None:
        require(found == 0.0, partial(_gradient_error, name))
    elif found.item():
        raise _gradient_error(name)


@lru_cache
def _one(device: th.device) -> th.Tensor:
    return th.ones((), device=device)


def require_gradients() -> None:
    """
    :raises RuntimeError: if gradients are switched off, so that nothing could be learned; as in SB3, but before anything is
        changed
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
    :param optimizer: any
    :return: whether a tensor can tell it, on the device, to make no step
    """
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return fused and type(optimizer) in (th.optim.Adam, th.optim.AdamW)


def _step_unless(optimizer: th.optim.Optimizer, failed: th.Tensor | None) -> None:
    # As a GradScaler tells it: fused Adam reads this on the device
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
    :param records: numbers and scalars, on any device
    :return: the same as numbers, in the same order; the host waits for a device once
    """
    away = [value for values in records.values() for value in values if isinstance(value, th.Tensor) and not is_host(value)]
    read = iter(th.stack([value.reshape(()).double() for value in away]).tolist() if away else [])
    return {
        name: [next(read) if isinstance(value, th.Tensor) and not is_host(value) else float(value) for value in values]
        for name, values in records.items()
    }
