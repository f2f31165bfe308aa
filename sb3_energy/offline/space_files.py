"""Spaces as text, for files that run no code when they are read."""

import json
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_energy.files.checksums import DamagedError


def space_to_json(space: spaces.Space) -> str:
    """
    Write a space as text.

    :param space: one that a data set may have
    :return: JSON, which :func:`space_from_json` reads
    """
    return json.dumps(_described(space))


def space_from_json(text: str) -> spaces.Space:
    """
    Read a space.

    :param text: what :func:`space_to_json` has written
    :return: an equal space
    :raises DamagedError: if it is something else
    """
    try:
        return _read(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise DamagedError(f"the text of a space in it is damaged: {text!r:.60}") from error


def _described(space: Any) -> dict[str, Any]:
    if isinstance(space, spaces.Dict):
        return dict(kind="Dict", spaces=[[key, _described(part)] for key, part in space.spaces.items()])
    if isinstance(space, spaces.Box):
        bounds = dict(low=_bound(space.low), high=_bound(space.high))
        return dict(kind="Box", shape=list(space.shape), dtype=str(space.dtype), **bounds)
    if isinstance(space, spaces.Discrete):
        return dict(kind="Discrete", n=int(space.n), start=int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        return dict(kind="MultiDiscrete", nvec=space.nvec.tolist(), start=space.start.tolist())
    return dict(kind="MultiBinary", n=int(space.n) if np.ndim(space.n) == 0 else list(map(int, space.n)))


def _bound(bound: np.ndarray) -> Any:
    """One number where all are the same: images have thousands."""
    same = bound.size > 0 and bool((bound == bound.flat[0]).all())
    return bound.flat[0].item() if same else bound.tolist()


def _read(found: dict[str, Any]) -> spaces.Space:
    kind = found["kind"]
    if kind == "Dict":
        return spaces.Dict({key: _read(part) for key, part in found["spaces"]})
    if kind == "Box":
        shape, dtype = tuple(found["shape"]), np.dtype(found["dtype"])
        low, high = (np.broadcast_to(np.array(found[name], dtype=dtype), shape) for name in ("low", "high"))
        return spaces.Box(low.copy(), high.copy(), shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(found["n"], start=found["start"])
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(found["nvec"], start=found["start"])
    return spaces.MultiBinary(found["n"])
