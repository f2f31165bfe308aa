"""Arrays as people have them: views, other byte orders, data frames, lists, tensors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th


def as_tensor(name: str, values: Any) -> th.Tensor:
    """
    Convert array-like real numbers to a floating-point tensor.

    :param name: of the argument
    :param values: real numbers: an array in any layout and byte order, whatever has ``__array__`` (data frames, series), lists
        of lists, or a tensor; masked and missing entries become NaN
    :return: a tensor without a graph, in double precision unless they came in single or half; of an array it is a copy
    :raises TypeError: if these are no real numbers
    """
    if isinstance(values, th.Tensor):
        if values.is_complex() or values.dtype == th.bool:
            raise TypeError(f"{name} must be real numbers, got {values.dtype}")
        return values.detach() if values.is_floating_point() else values.detach().double()
    try:
        if isinstance(values, np.ma.MaskedArray):
            values = np.ma.filled(values.astype(np.float64), np.nan)
        array = np.asarray(values)
        if array.ndim == 0 and array.dtype == object:
            raise TypeError("no array")
        if array.dtype == object and not any(isinstance(value, (str, bytes)) for value in array.flat):
            array = array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise TypeError(f"{name} must be an array or a tensor of numbers, got {type(values).__name__} ({reason})") from error
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be real numbers, got {array.dtype} of {type(values).__name__}")
    precision = np.float32 if array.dtype.kind == "f" and array.dtype.itemsize <= 4 else np.float64
    return th.from_numpy(np.array(array, dtype=precision, order="C"))


def as_native(observation: Any) -> Any:
    """
    Observations that torch and NumPy can share: torch takes no negative strides, no other machine's byte order and no
    read-only array without a warning, and NumPy takes no tensor of a GPU.

    :param observation: an array, a dictionary of arrays, or whatever becomes one
    :return: the same; what was fine already is not copied
    """
    if isinstance(observation, Mapping):
        return {key: as_native(part) for key, part in observation.items()}
    if isinstance(observation, th.Tensor):
        return observation.detach().cpu().numpy()
    if not hasattr(observation, "__array__"):
        return observation
    array = np.asarray(observation)
    if array.dtype == object:
        array = array.astype(np.float64)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        return np.array(array, order="C")
    return array
