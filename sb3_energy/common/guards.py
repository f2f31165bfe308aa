"""Stops where a number is none, before anything is stored or changed."""

import numpy as np
import torch as th


def check_finite(what: str, values: np.ndarray | dict[str, np.ndarray]) -> None:
    """
    :param what: the name of the values, for the message
    :param values: what the environment returned
    :raises ValueError: if one of them is NaN or infinite
    """
    if isinstance(values, dict):
        for key, part in values.items():
            check_finite(f"{what} {key!r}", part)
    elif np.asarray(values).dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"the {what} must be finite, got NaN or infinity from the environment; nothing was stored")


def guarded_step(optimizer: th.optim.Optimizer, loss: th.Tensor, name: str, records: dict[str, list[float]]) -> None:
    """
    One step of an optimiser, unless the loss is no number.

    :param optimizer: of the parameters that the loss is to change
    :param loss: scalar; without a graph its derivatives are in the parameters' ``grad`` already
    :param name: of the loss, for the records and the message
    :param records: where its value is appended
    :raises FloatingPointError: if the loss is not finite; no parameter is changed then
    """
    value = loss.item()
    if not np.isfinite(value):
        raise FloatingPointError(
            f"{name} is {value}: training stops before it changes the networks; "
            "try a lower learning_rate, a smaller reward scale, or backbone='layer_norm'"
        )
    records[name].append(value)
    if loss.requires_grad:
        optimizer.zero_grad()
        loss.backward()
    optimizer.step()
