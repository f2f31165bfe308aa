"""Data sets from wherever transitions are kept."""

from collections.abc import Mapping
from typing import Any

from gymnasium import spaces

from sb3_energy.offline.offline_dataset import OfflineDataset
from sb3_energy.offline.sources.arrays import from_arrays


def load_dataset(
    source: Any, observation_space: spaces.Space | None = None, action_space: spaces.Space | None = None
) -> OfflineDataset:
    """
    Load a data set from a dictionary of arrays.

    :param source: where the data are
    :param observation_space: of the data (``None``: that of the source, or an unbounded one of the right shape)
    :param action_space: of the data (``None``: that of the source, or the box [-1, 1])
    :return: the checked data
    :raises TypeError: if the source is of another kind
    :raises ValueError: if something is wrong with the data
    """
    if isinstance(source, OfflineDataset):
        return source
    if isinstance(source, Mapping):
        return from_arrays(source, observation_space, action_space)
    raise TypeError(f"source must be a dictionary of arrays, got {source!r}")
