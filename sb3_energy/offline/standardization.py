"""Observations in units of their standard deviation, by statistics of the data that the policy keeps."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from torch import nn

from sb3_energy.networks import RunningNorm

ROWS_AT_A_TIME = 2**16
CONSTANT = 1e-6
"""A coordinate varies if its standard deviation is larger than this, in units of its largest magnitude."""


class Standardizer(nn.Module):
    """
    ``(x - mean) / std`` for the vectors among observations, and the identity for everything else (images, discrete spaces,
    arrays of three axes). Coordinates that are constant in the data are only shifted: nothing is known of their scale.

    :param space: of observations
    """

    def __init__(self, space: spaces.Space):
        super().__init__()
        parts: dict[Any, Any] = dict(space.spaces) if isinstance(space, spaces.Dict) else {None: space}
        self.keys: list[Any] = [key for key, part in parts.items() if _is_vector(part)]
        self.norms = nn.ModuleList(RunningNorm(int(np.prod(parts[key].shape)), eps=0.0) for key in self.keys)

    def fit(self, observations: Any) -> None:
        """
        Take mean and standard deviation from data.

        :param observations: ``(n, *O)``, or a dictionary of such
        """
        for key, norm in zip(self.keys, self.norms, strict=True):
            column = observations if key is None else observations[key]
            mean, variance, largest = _moments(column.reshape(len(column), -1))
            variance[np.sqrt(variance) <= CONSTANT * largest] = 1.0
            for name, value in (("mean", mean), ("var", variance), ("count", len(column))):
                buffer = getattr(norm, f"running_{name}")
                buffer.copy_(th.as_tensor(value))

    def forward(self, observations: Any) -> Any:
        """
        Standardise.

        :param observations: ``(B, *O)`` after SB3's preprocessing, or a dictionary of such
        :return: of the same shapes
        """
        if not self.keys:
            return observations
        if self.keys == [None]:
            return _normed(self.norms[0], observations)
        found = dict(observations)
        for key, norm in zip(self.keys, self.norms, strict=True):
            found[key] = _normed(norm, observations[key])
        return found


def _is_vector(space: Any) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) < 3 and not is_image_space(space)


def _normed(norm: nn.Module, x: th.Tensor) -> th.Tensor:
    return norm(x.flatten(1)).reshape(x.shape)


def _moments(column: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, variance and largest magnitude of each coordinate, in double precision and some rows at a time."""
    chunks = [column[i : i + ROWS_AT_A_TIME] for i in range(0, len(column), ROWS_AT_A_TIME)]
    mean = np.sum([chunk.sum(axis=0, dtype=np.float64) for chunk in chunks], axis=0) / len(column)
    variance = np.sum([np.square(chunk - mean).sum(axis=0) for chunk in chunks], axis=0) / len(column)
    return mean, variance, np.max([np.abs(chunk).max(axis=0) for chunk in chunks], axis=0)
