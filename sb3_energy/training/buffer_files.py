"""Replay buffers in files, with a checksum, and checks that they fit the model."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_energy.files.atomic import PathOrFile
from sb3_energy.files.checksums import DamagedError, load_checked
from sb3_energy.files.errors import existing, explained

WHAT = "replay buffer"


def read_buffer(path: PathOrFile) -> ReplayBuffer:
    """
    Load a replay buffer from a file and check it.

    :param path: file of ``save_replay_buffer``, this package's or SB3's, with or without ``.pkl``
    :return: the buffer
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it is no replay buffer, is damaged, or needs a class that cannot be imported
    """
    found: Any = existing(path, "pkl", WHAT)
    with explained(path, WHAT):
        if hasattr(found, "read"):
            buffer = load_checked(found, is_alone=False)
        else:
            with open(found, "rb") as file:
                buffer = load_checked(file, is_alone=True)
        if not isinstance(buffer, ReplayBuffer):
            raise DamagedError(f"it holds a {type(buffer).__name__}")
    if not hasattr(buffer, "handle_timeout_termination"):  # of SB3 before 2.1
        buffer.handle_timeout_termination = False
        buffer.timeouts = np.zeros_like(buffer.dones)
    return buffer


def not_finite_row(buffer: ReplayBuffer) -> str | None:
    """
    Find the first non-finite number in a replay buffer.

    :param buffer: of this package or SB3
    :return: place of the first number that is NaN or infinite, or ``None``
    """
    n_rows = buffer.buffer_size if buffer.full else buffer.pos + int(buffer.optimize_memory_usage)
    for name in ("observations", "next_observations", "actions", "rewards", "chains"):
        stored = getattr(buffer, name, None)
        for key, part in stored.items() if isinstance(stored, dict) else [(None, stored)]:
            row = None if part is None else first_not_finite(part[:n_rows])
            if row is not None:
                return f"row {row} of its {name}" + ("" if key is None else f"[{key!r}]")
    return None


def first_not_finite(stored: Any) -> int | None:
    """
    Find the first row with a non-finite number.

    :param stored: an array or a tensor ``(n, ...)``; what holds no floating-point numbers is finite
    :return: index of the row, or ``None``
    """
    if isinstance(stored, th.Tensor):
        stored = stored.cpu().numpy()
    if not isinstance(stored, np.ndarray) or stored.dtype.kind != "f":
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(stored.sum()):  # which takes a fraction of the time
            return None
    rows = np.flatnonzero(~np.isfinite(stored).reshape(len(stored), -1).all(axis=1))
    return int(rows[0]) if len(rows) > 0 else None


def check_buffer_fits(buffer: ReplayBuffer, model: Any) -> None:
    """
    Check that a loaded replay buffer is compatible with a model.

    :param buffer: a loaded buffer
    :param model: an off-policy algorithm
    :raises ValueError: if spaces, number of environments, class or the steps of its returns are not the model's, or a number
        in it is not finite
    """
    own = model.replay_buffer
    for name in ("observation_space", "action_space"):
        found, expected = getattr(buffer, name), getattr(model, name)
        if not same_space(found, expected, bounds=name == "action_space"):
            raise ValueError(f"the replay buffer must have the model's {name}, {expected}, got one of {found}")
    if buffer.n_envs != model.n_envs:
        raise ValueError(f"the replay buffer must be of {model.n_envs} environments, as the model is, got {buffer.n_envs}")
    expected_class = model.replay_buffer_class
    if not isinstance(buffer, expected_class):
        raise ValueError(
            f"the replay buffer must be a {expected_class.__name__}, the model's replay_buffer_class, "
            f"got a {type(buffer).__name__}"
        )
    for name, default in (("n_steps", 1), ("gamma", model.gamma)):
        found, expected = getattr(buffer, name, default), getattr(own, name, default)
        if found != expected:
            raise ValueError(f"the replay buffer must have the model's {name}={expected!r}, got one of {name}={found!r}")
    if isinstance(buffer, HerReplayBuffer) and model.env is None:
        raise ValueError("a HerReplayBuffer needs an environment: load the model with env=..., or call set_env first")
    bad = not_finite_row(buffer)
    if bad is not None:
        raise ValueError(f"the replay buffer must be finite, got NaN or infinity in {bad}")


def same_space(found: Any, expected: Any, bounds: bool, any_float: bool = False) -> bool:
    """
    Compare two spaces.

    :param found: a space
    :param expected: another one
    :param bounds: whether bounds of boxes are compared. Those of actions matter, since stored actions are in units of the box;
        observations are stored as they were, whatever a wrapper says of their bounds
    :param any_float: whether boxes of numbers in single and double precision are the same
    :return: whether what is of one space can be used in the other
    """
    if isinstance(found, spaces.Dict) and isinstance(expected, spaces.Dict):
        names = found.spaces.keys()
        return names == expected.spaces.keys() and all(
            same_space(found.spaces[name], expected.spaces[name], bounds, any_float) for name in names
        )
    if type(found) is not type(expected) or found.shape != expected.shape:
        return False
    if found.dtype != expected.dtype and not (any_float and {found.dtype.kind, expected.dtype.kind} == {"f"}):
        return False
    if not isinstance(found, spaces.Box):
        return bool(found == expected)
    return not bounds or bool(np.allclose(found.low, expected.low) and np.allclose(found.high, expected.high))
