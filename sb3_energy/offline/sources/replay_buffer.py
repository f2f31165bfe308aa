"""Data sets from Stable-Baselines3's replay buffers."""

from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_energy.offline.columns import check_dataset_spaces, mapped
from sb3_energy.offline.offline_dataset import OfflineDataset


def from_replay_buffer(buffer: ReplayBuffer) -> OfflineDataset:
    """
    Make a data set of the transitions in a replay buffer, oldest first, one environment after the other.

    Off-policy algorithms store actions scaled to [-1, 1]; the data set has them in the units of the environment. Where an
    episode was left without an end, as when ``learn`` was called again, the next observation of a row is not the observation
    of the following one, and an episode ends there.

    :param buffer: of any of SB3's off-policy algorithms
    :return: its transitions
    :raises ValueError: if it is empty, or its actions are discrete
    """
    space: Any = buffer.action_space
    check_dataset_spaces(buffer.observation_space, space)
    n_rows = buffer.buffer_size if buffer.full else buffer.pos
    if n_rows == 0:
        raise ValueError("the replay buffer must have at least one transition, got an empty one")
    index = (np.arange(n_rows) + (buffer.pos if buffer.full else 0)) % buffer.buffer_size
    if buffer.full and buffer.optimize_memory_usage:
        index = index[1:]  # the oldest one's observation has been replaced by the newest one's next observation

    def taken(column: Any, rows: np.ndarray = index) -> Any:
        return mapped(column, lambda part: _by_environment(_as_array(part)[rows]))

    observations = taken(buffer.observations)
    if buffer.optimize_memory_usage:
        next_observations = taken(buffer.observations, (index + 1) % buffer.buffer_size)
    else:
        next_observations = taken(buffer.next_observations)
    actions = space.low + 0.5 * (taken(buffer.actions).reshape(-1, *space.shape) + 1.0) * (space.high - space.low)
    dones, timeouts = taken(buffer.dones) > 0.5, taken(buffer.timeouts) > 0.5
    ends = dones | _is_torn(observations, next_observations)
    ends[len(index) - 1 :: len(index)] = True
    return OfflineDataset(
        observations=observations,
        actions=actions,
        observation_space=buffer.observation_space,
        action_space=space,
        rewards=taken(buffer.rewards),
        next_observations=next_observations,
        terminations=dones & ~timeouts,
        truncations=dones & timeouts,
        episode_ends=ends,
    )


def _as_array(part: Any) -> np.ndarray:
    return part.cpu().numpy() if hasattr(part, "cpu") else part  # those of a DeviceReplayBuffer are tensors


def _by_environment(part: np.ndarray) -> np.ndarray:
    """``(n, n_envs, ...) -> (n_envs · n, ...)``"""
    return part.swapaxes(0, 1).reshape(part.shape[0] * part.shape[1], *part.shape[2:])


def _is_torn(observations: Any, next_observations: Any) -> np.ndarray:
    """``(n,)``, after which rows another episode follows, whatever the ends say."""
    if isinstance(observations, dict):
        return np.any([_is_torn(part, next_observations[key]) for key, part in observations.items()], axis=0)
    torn = (next_observations[:-1] != observations[1:]).reshape(len(observations) - 1, -1).any(axis=1)
    return np.append(torn, True)
