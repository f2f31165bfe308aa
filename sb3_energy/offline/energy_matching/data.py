"""The data of an Energy Matching: samples, or an expert's pairs of observations and actions."""

from dataclasses import replace
from typing import Any

import torch as th

from sb3_energy.offline.dataset import Dataset, checked_dataset


def checked_samples(samples: Any, observations: Any, box: str | None, device: th.device) -> Dataset:
    """
    Check what ``fit`` is given.

    :param samples: ``(n, D)``, or ``(n, K, D)`` with observations
    :param observations: ``(n, O)`` or ``None``
    :param box: whether actions must lie in ``[-1, 1]``
    :param device: where to put the data
    :return: actions ``(n, K, D)``, ``K`` of each observation, and observations
    :raises TypeError: if something is not an array of numbers
    :raises ValueError: if a shape is wrong, a number is NaN or infinity, or an action lies outside the box
    """
    dims = (2,) if observations is None else (2, 3)
    data = checked_dataset(samples, observations, device=device, action_dims=dims, actions_are="samples")
    if box is not None and not bool((data.actions.abs() <= 1.0).all()):
        largest = data.actions.abs().max().item()
        raise ValueError(f"samples must lie in [-1, 1] with box={box!r}, got one of magnitude {largest:g}; scale them")
    return replace(data, actions=data.actions.unsqueeze(1)) if data.actions.dim() == 2 else data


def training_batch(data: Dataset, batch_size: int, generator: th.Generator) -> tuple[th.Tensor, th.Tensor | None]:
    """
    Draw a minibatch. Samples without observations become particles of one empty observation, so that optimal transport pairs
    them all; actions with observations stay with their own observation.

    :param data: what :func:`checked_samples` returns
    :param batch_size: number of samples; with ``K`` actions of each observation, ``batch_size // K`` observations are drawn
    :param generator: source of the draw
    :return: ``(1, batch_size, D)`` and ``None``, or ``(B, K, D)`` and ``(B, O)``
    """
    if data.observations is None:
        return data.draw(batch_size, generator).actions.transpose(0, 1), None
    batch = data.draw(max(batch_size // data.actions.shape[1], 1), generator)
    return batch.actions, batch.observations
