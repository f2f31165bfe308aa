"""The data of an offline algorithm, checked once and drawn from in minibatches."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th

from sb3_energy.conversion import as_tensor

SHAPES = {1: "(D,)", 2: "(n, D)", 3: "(n, K, D)"}


@dataclass(frozen=True)
class Dataset:
    """
    ``n`` rows in single precision, on one device. Columns that an algorithm does not need are ``None``.

    :param actions: ``(n, D)``, or ``(n, K, D)`` for ``K`` actions of each observation
    :param observations: ``(n, O)``
    :param rewards: ``(n,)``
    :param next_observations: ``(n, O)``
    :param dones: ``(n,)``, 1 where the return ends with this row and the value of the next observation does not count.
        A trajectory that was cut off by a time limit is no such end
    """

    actions: th.Tensor
    observations: th.Tensor | None = None
    rewards: th.Tensor | None = None
    next_observations: th.Tensor | None = None
    dones: th.Tensor | None = None

    def __len__(self) -> int:
        return len(self.actions)

    def draw(self, n: int, generator: th.Generator) -> "Dataset":
        """
        A minibatch of rows, drawn uniformly with replacement.

        :param n: number of rows
        :param generator: source of the draw, on the device of the data
        :return: the rows, in the same columns
        """
        rows = th.randint(len(self), (n,), generator=generator, device=self.actions.device)

        def of(column: th.Tensor | None) -> th.Tensor | None:
            return None if column is None else column[rows]

        return Dataset(self.actions[rows], of(self.observations), of(self.rewards), of(self.next_observations), of(self.dones))


def checked_dataset(
    actions: Any,
    observations: Any = None,
    rewards: Any = None,
    next_observations: Any = None,
    dones: Any = None,
    *,
    device: th.device,
    action_dims: tuple[int, ...] = (2,),
    actions_are: str = "actions",
) -> Dataset:
    """
    A data set from arrays, tensors, data frames or lists.

    :param actions: ``(n, D)``, or ``(n, K, D)`` where ``action_dims`` has a 3
    :param observations: ``(n, O)`` or ``None``
    :param rewards: ``(n,)``, ``(n, 1)`` or ``None``
    :param next_observations: ``(n, O)`` or ``None``
    :param dones: booleans, or 0 and 1, ``(n,)`` or ``(n, 1)``, or ``None``
    :param device: where to put the data
    :param action_dims: accepted numbers of axes of the actions
    :param actions_are: name of the argument that holds the actions, for error messages
    :return: the checked data
    :raises TypeError: if something is not an array of numbers
    :raises ValueError: if a shape or a number of rows is wrong, or a number is NaN or infinity
    """
    found = as_points(actions_are, actions, action_dims, device)
    columns: dict[str, th.Tensor] = {}
    for name, values in (("observations", observations), ("next_observations", next_observations)):
        if values is not None:
            columns[name] = as_points(name, values, (2,), device)
    for name, values in (("rewards", rewards), ("dones", dones)):
        if values is not None:
            columns[name] = _scalars(name, values, device)
    for name, column in columns.items():
        if len(column) != len(found):
            raise ValueError(f"there must be as many {name} as rows of {actions_are}, got {len(column)} and {len(found)}")
    if "dones" in columns and not bool(((columns["dones"] == 0.0) | (columns["dones"] == 1.0)).all()):
        raise ValueError("dones must be 0 or 1")
    shapes = {columns[name].shape for name in ("observations", "next_observations") if name in columns}
    if len(shapes) > 1:
        raise ValueError(f"observations and next_observations must have one shape, got {sorted(map(tuple, shapes))}")
    return Dataset(found, **columns)


def as_points(name: str, values: Any, dims: tuple[int, ...], device: th.device, may_be_empty: bool = False) -> th.Tensor:
    """
    Numbers as a tensor in single precision.

    :param name: of the argument
    :param values: what :func:`sb3_energy.conversion.as_tensor` takes
    :param dims: accepted numbers of axes
    :param device: where to put the tensor
    :param may_be_empty: whether the first axis may have the length 0
    :return: a tensor of the same shape
    :raises TypeError: if these are not real numbers
    :raises ValueError: if the shape is wrong, or a number is NaN or infinity
    """
    points = as_tensor(name, values)
    if points.dim() not in dims or 0 in points.shape[1 if may_be_empty and points.dim() > 1 else 0 :]:
        shapes = " or ".join(SHAPES[dim] for dim in dims)
        raise ValueError(f"{name} must have shape {shapes} with no 0 in it, got {tuple(points.shape)}")
    points = points.to(device=device, dtype=th.float32)
    if not th.isfinite(points).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity; nothing was learned from it")
    return points


def _scalars(name: str, values: Any, device: th.device) -> th.Tensor:
    if isinstance(values, th.Tensor) and values.dtype == th.bool:
        values = values.float()
    elif not isinstance(values, th.Tensor) and np.asarray(values).dtype == bool:
        values = np.asarray(values, dtype=np.float32)
    column = as_points(name, values, (1, 2), device)
    if column.dim() == 2 and column.shape[1] != 1:
        raise ValueError(f"{name} must have shape (n,) or (n, 1), got {tuple(column.shape)}")
    return column.reshape(-1)
