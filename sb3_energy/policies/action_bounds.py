"""Bounds of an action space, which actions are scaled by."""

from typing import Any

import numpy as np
from gymnasium import spaces


def check_action_bounds(space: Any) -> None:
    """
    :param space: an action space; what is no box of floats is somebody else's to refuse
    :raises ValueError: if a dimension has no width that is finite and above 0
    """
    if not isinstance(space, spaces.Box):
        return
    low, high = np.asarray(space.low), np.asarray(space.high)
    with np.errstate(all="ignore"):
        fits = np.isfinite(low) & np.isfinite(high) & (low < high) & np.isfinite(high - low)
    if fits.all():
        return
    index = tuple(int(i) for i in np.argwhere(~fits)[0])
    name = index[0] if len(index) == 1 else index
    raise ValueError(
        f"the action space must have finite bounds with low < high in each dimension, got low={low[index].item()!r} and "
        f"high={high[index].item()!r} in dimension {name}; bound it, or leave it out, by a wrapper of the environment"
    )
