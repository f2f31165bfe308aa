"""Data sets from dictionaries of arrays, under the names that are in use."""

import textwrap
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_energy.offline.columns import check_dataset_spaces, checked_flags, mapped
from sb3_energy.offline.offline_dataset import OfflineDataset

KNOWN = (
    "observations", "actions", "rewards", "next_observations", "terminations", "terminals", "dones", "truncations", "timeouts",
    "masks", "valids", "episode_ends",
)  # fmt: skip

LONGEST_LIST = 200
"""Of names, in an error message."""


def from_arrays(
    found: Mapping[str, Any], observation_space: spaces.Space | None = None, action_space: spaces.Space | None = None
) -> OfflineDataset:
    """
    Make a data set of arrays.

    ``observations`` and ``actions`` are needed. ``rewards`` and ``next_observations`` may be there. ``terminations``,
    ``terminals`` and ``dones`` are three names for ends of the return, ``truncations`` and ``timeouts`` two for time limits.
    Beside ``masks``, which are 0 where the return ends (OGBench), and in data without rewards, ``terminals`` are ends of
    trajectories. Where ``valids`` is 0 (OGBench's compact form) there is only the last observation of a trajectory. Other
    names are not read.

    :param found: arrays by name, each with one row for each transition
    :param observation_space: of the data (``None``: an unbounded box, or that of images for bytes of three axes)
    :param action_space: of the data (``None``: [-1, 1])
    :return: the checked data
    :raises ValueError: if columns are missing or contradict each other, or something is wrong with one
    :raises TypeError: if a column is no array of numbers
    """
    _check_names(found)
    columns = {name: found[name] for name in ("observations", "actions", "rewards", "next_observations") if name in found}
    columns |= _ends(found)
    space = _space_like(found["observations"]) if observation_space is None else observation_space
    box = _box_like(found["actions"]) if action_space is None else action_space
    if "valids" in found:
        columns = _valid_rows(columns, found["valids"])
    check_dataset_spaces(space, box)
    return OfflineDataset(observation_space=space, action_space=box, **columns)  # type: ignore[arg-type]


def _check_names(found: Mapping[str, Any]) -> None:
    for name in ("observations", "actions"):
        if name not in found:
            names = textwrap.shorten(str(sorted(map(str, found))), LONGEST_LIST, placeholder=" ...")
            raise ValueError(f"a data set must have {name}, got only {names}")
    for name in map(str, found):
        near = get_close_matches(name, KNOWN, n=1, cutoff=0.85) if name not in KNOWN else []
        if near and near[0] not in found:
            raise ValueError(f"a data set has no column {name!r}; did you mean {near[0]!r}?")


def _ends(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Ends of returns, time limits and ends of episodes, by the conventions of who has written the data."""
    n = len(found["actions"])
    flags = {name: checked_flags(name, found[name], n, "actions") for name in KNOWN[4:] if name in found}
    synonyms = [name for name in ("terminations", "terminals", "dones") if name in flags]
    limits = [name for name in ("truncations", "timeouts") if name in flags]
    for names in (synonyms, limits):
        if len(names) > 1:
            raise ValueError(f"a data set must have one of {names}, which mean the same, got {len(names)}")
    ends = flags[synonyms[0]] if synonyms else np.zeros(n, dtype=bool)
    truncations = flags[limits[0]] if limits else np.zeros(n, dtype=bool)
    if "masks" in flags or (synonyms == ["terminals"] and "rewards" not in found and not limits):
        terminations = ~flags["masks"] if "masks" in flags else np.zeros(n, dtype=bool)
        return dict(terminations=terminations, truncations=ends & ~terminations, episode_ends=ends)
    columns = dict(terminations=ends, truncations=truncations)
    return columns | {name: flags[name] for name in ("episode_ends",) if name in flags}


def _valid_rows(columns: dict[str, Any], valids: Any) -> dict[str, Any]:
    """Next observations by the next rows, and then without those of which there is only an observation."""
    n = len(columns["actions"])
    is_valid = checked_flags("valids", valids, n, "actions")
    if is_valid[-1:].any() or not is_valid.any():
        raise ValueError("valids must be 0 in the last row, where there is only an observation, and 1 in another one")
    rows = np.flatnonzero(is_valid)
    given = {name: dict(part) if isinstance(part, Mapping) else np.asarray(part) for name, part in columns.items()}
    taken = {name: mapped(part, lambda column: np.asarray(column)[rows]) for name, part in given.items()}
    taken.setdefault("next_observations", mapped(given["observations"], lambda column: np.asarray(column)[rows + 1]))
    taken["episode_ends"] = taken["episode_ends"] | ~is_valid[rows + 1] if "episode_ends" in taken else ~is_valid[rows + 1]
    return taken


def _space_like(observations: Any) -> spaces.Space:
    if isinstance(observations, Mapping):
        return spaces.Dict({key: _space_like(part) for key, part in observations.items()})
    array = np.asarray(observations)
    if array.dtype == np.uint8 and array.ndim == 4:
        return spaces.Box(0, 255, array.shape[1:], np.uint8)
    shape = array.shape[1:] if array.ndim > 1 else (1,)
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def _box_like(actions: Any) -> spaces.Box:
    array = np.asarray(actions)
    return spaces.Box(-1.0, 1.0, array.shape[1:] if array.ndim > 1 else (1,), np.float32)
