"""Checks of the columns of a data set: each error is one sentence with the field and the row."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first

from sb3_energy.policies.arguments import check_action_bounds
from sb3_energy.training.buffer_files import first_not_finite

Column = np.ndarray | dict[str, np.ndarray]
"""``(n, ...)``, or a dictionary of such, as observations of a ``Dict`` space are."""

OBSERVATION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
ROUNDING = 1e-5
"""Actions may lie so far outside of the box, in units of its width, by a rounding in single precision; they are clipped."""


def mapped(column: Any, function: Callable[[Any], Any]) -> Any:
    """
    Apply a function to each array of a column.

    :param column: an array or tensor, a dictionary of such, or ``None``
    :param function: from array to array
    :return: a column of the same structure
    """
    if isinstance(column, dict):
        return {key: function(part) for key, part in column.items()}
    return None if column is None else function(column)


def check_dataset_spaces(observation_space: Any, action_space: Any) -> None:
    """
    Check that offline algorithms can learn in these spaces.

    :param observation_space: of the data
    :param action_space: of the data
    :raises ValueError: if one is of another kind, or the actions have no finite bounds
    """
    if not isinstance(action_space, spaces.Box):
        raise ValueError(f"the action space must be a Box: actions of offline algorithms are continuous, got {action_space}")
    check_action_bounds(action_space)
    parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
    for key, part in parts.items():
        if not isinstance(part, OBSERVATION_SPACES):
            where = f" at {key!r}" if key else ""
            raise ValueError(
                "the observation space must be a Box, Discrete, MultiDiscrete, MultiBinary or a flat Dict of these, "
                f"got {part}{where}"
            )


def checked_actions(values: Any, space: spaces.Box) -> np.ndarray:
    """
    Check actions.

    :param values: ``(n, *A)``, or ``(n,)`` if an action is one number
    :param space: the box
    :return: in single precision, clipped to the box where they were outside by a rounding
    :raises ValueError: if there are none, or one is not finite or outside of the box
    :raises TypeError: if these are no numbers
    """
    array = _numbers("actions", values)
    if array.ndim == 1 and space.shape == (1,):
        array = array[:, None]
    if len(array.shape) == 0 or len(array) == 0:
        raise ValueError("actions must have at least one row, got none: the data set is empty")
    _check_shape("actions", array, space.shape)
    array = _in_single_precision("actions", array)
    low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    clipped = np.clip(array, low, high)
    outside = np.abs(clipped - array) > ROUNDING * (high - low)
    if outside.any():
        place = tuple(int(i) for i in np.argwhere(outside)[0])
        row, index = place[0], place[1:]
        raise ValueError(
            f"actions must lie in the box of the action space, got {array[place]:g} in row {row} at {_index(index)}, "
            f"which goes from {low[index]:g} to {high[index]:g}; give the data's action_space, or scale them"
        )
    return clipped


def checked_observations(name: str, values: Any, space: spaces.Space, n: int) -> Column:
    """
    Check a column of observations.

    :param name: of the column
    :param values: ``(n, *O)``, or a dictionary of such
    :param space: that they are of
    :param n: number of rows that are expected
    :return: bytes and integers as such, where the space has these, and others in single precision
    :raises ValueError: if a shape or a number of rows is wrong, or a value is not finite or not of a discrete space
    :raises TypeError: if these are no numbers
    """
    if not isinstance(space, spaces.Dict):
        if isinstance(values, Mapping):
            raise ValueError(
                f"{name} must be an array for the observation space {space}, got a dictionary of {sorted(values)}"
            )
        return _checked_part(name, values, space, n)
    if not isinstance(values, Mapping) or set(values) != set(space.spaces):
        got = sorted(values) if isinstance(values, Mapping) else type(values).__name__
        raise ValueError(f"{name} must be a dictionary with the keys {sorted(space.spaces)}, got {got}")
    return {key: _checked_part(f"{name}[{key!r}]", values[key], part, n) for key, part in space.spaces.items()}


def _checked_part(name: str, values: Any, space: spaces.Space, n: int) -> np.ndarray:
    array = _numbers(name, values)
    shape = space.shape or ()
    if isinstance(space, spaces.Discrete) and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 1 and shape == (1,):
        array = array[:, None]
    if array.ndim == 4 and array.shape[1:] != shape == (array.shape[3], *array.shape[1:3]) and is_image_space(space):
        array = np.moveaxis(array, 3, 1)  # of an environment whose images have been made channels-first
    _check_shape(name, array, shape)
    _check_length(name, array, n, "actions")
    if isinstance(space, spaces.Box) and space.dtype != np.uint8:
        return _in_single_precision(name, array)
    low, high, dtype = _whole_numbers(space)
    if dtype is np.uint8 and array.dtype == np.uint8:
        return array
    wrong = ~((array >= low) & (array <= high) & (array == np.floor(array)))  # NaN is wrong, too
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"{name} must be whole numbers of {space}, got {array[place]:g} in row {place[0]}")
    return array.astype(dtype)


def _whole_numbers(space: Any) -> tuple[np.ndarray, np.ndarray, Any]:
    """Smallest and largest value of a space of whole numbers, and the type in which they are kept."""
    if isinstance(space, spaces.Box):
        return np.array(0), np.array(255), np.uint8
    if isinstance(space, spaces.Discrete):
        return np.array(space.start), np.array(space.start + space.n - 1), np.int64
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1, np.int64
    return np.array(0), np.array(1), np.int8


def checked_rewards(values: Any, n: int) -> np.ndarray:
    """
    Check rewards.

    :param values: ``(n,)`` or ``(n, 1)``
    :param n: number of rows that are expected
    :return: ``(n,)`` in single precision
    :raises ValueError: if the shape is wrong or one is not finite
    :raises TypeError: if these are no numbers
    """
    return _in_single_precision("rewards", _of_one_number("rewards", _numbers("rewards", values), n, "actions"))


def checked_flags(name: str, values: Any, n: int, as_many_as: str) -> np.ndarray:
    """
    Check a column that is true or false.

    :param name: of the column
    :param values: booleans, or 0 and 1, ``(n,)`` or ``(n, 1)``; ``None`` is false everywhere
    :param n: number of rows that are expected
    :param as_many_as: name of the column that has them
    :return: ``(n,)`` booleans
    :raises ValueError: if the shape or a value is wrong
    :raises TypeError: if these are neither booleans nor numbers
    """
    if values is None:
        return np.zeros(n, dtype=bool)
    array = np.asarray(values)
    if array.dtype != bool:
        array = _numbers(name, values)
        wrong = np.flatnonzero(((array != 0) & (array != 1)).reshape(len(array), -1).any(axis=1)) if array.ndim else [0]
        if len(wrong) > 0:
            raise ValueError(f"{name} must be 0 or 1, got another value in row {wrong[0]}")
    return _of_one_number(name, array, n, as_many_as).astype(bool)


def _numbers(name: str, values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor
        values = values.detach().cpu().numpy()
    try:
        if isinstance(values, np.ma.MaskedArray):
            values = np.ma.filled(values.astype(np.float64), np.nan)
        array = np.asarray(values)
        if array.dtype == object and not any(isinstance(value, (str, bytes)) for value in array.flat):
            array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise TypeError(f"{name} must be an array of numbers, got {type(values).__name__} ({reason})") from error
    if array.dtype.kind not in "iufb":
        raise TypeError(f"{name} must be an array of numbers, got {array.dtype} of {type(values).__name__}")
    return array


def _check_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.ndim == 0 or array.shape[1:] != tuple(shape):
        expected = ", ".join(("n", *map(str, shape)))
        raise ValueError(f"{name} must have shape ({expected}{',' if not shape else ''}), got {array.shape}")


def _check_length(name: str, array: np.ndarray, n: int, as_many_as: str) -> None:
    if len(array) != n:
        raise ValueError(f"there must be as many rows of {name} as of {as_many_as}, got {len(array)} and {n}")


def _of_one_number(name: str, array: np.ndarray, n: int, as_many_as: str) -> np.ndarray:
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] != 1):
        raise ValueError(f"{name} must have shape (n,) or (n, 1), got {array.shape}")
    _check_length(name, array, n, as_many_as)
    return array.reshape(-1)


def _in_single_precision(name: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(array, dtype=np.float32)
    row = first_not_finite(single)
    if row is not None:
        found = array[row][~np.isfinite(single[row])].flat[0] if array.ndim > 1 else array[row]
        raise ValueError(f"{name} must be finite in single precision, got {found:g} in row {row}")
    return single


def _index(index: tuple[int, ...]) -> str:
    return f"coordinate {index[0] if len(index) == 1 else index}" if index else "its only coordinate"


def to_channels_first(column: Any, space: spaces.Space) -> tuple[Any, spaces.Space]:
    """
    Images as Stable-Baselines3's networks see them. What is channels-first already, or no image, stays as it is.

    :param column: of this space, or ``None``
    :param space: of observations
    :return: the column, a view of the same data, and its space
    """
    if isinstance(space, spaces.Dict):
        both = {key: to_channels_first(None if column is None else column[key], part) for key, part in space.spaces.items()}
        found = None if column is None else {key: part for key, (part, _) in both.items()}
        return found, spaces.Dict({key: part for key, (_, part) in both.items()})
    if not (isinstance(space, spaces.Box) and is_image_space(space)) or is_image_space_channels_first(space):
        return column, space
    height, width, channels = space.shape
    moved = spaces.Box(0, 255, (channels, height, width), np.uint8)
    return (None if column is None else np.moveaxis(column, 3, 1)), moved
