"""A replay buffer on the device of the networks. Experimental: it has never run on a GPU."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize

FIELDS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class DeviceReplayBuffer(ReplayBuffer):
    """
    SB3's replay buffer with its transitions as tensors on the device: a batch is gathered there, and only its indices are
    copied. With the same state of NumPy's generator it samples the same transitions as SB3's.

    Pass it as ``replay_buffer_class=DeviceReplayBuffer``. The device's memory must hold two observations, an action and three
    numbers for each of ``buffer_size`` transitions.

    :param buffer_size: Max number of element in the buffer
    :param observation_space: Observation space, no dictionary
    :param action_space: Action space
    :param device: PyTorch device
    :param n_envs: Number of parallel environments
    :param optimize_memory_usage: must be False
    :param handle_timeout_termination: Handle timeout termination (due to timelimit)
        separately and treat the task as infinite horizon task.
    :raises ValueError: with ``optimize_memory_usage=True``
    :raises TypeError: for a dictionary of observations
    """

    observations: th.Tensor  # type: ignore[assignment]
    next_observations: th.Tensor  # type: ignore[assignment]
    actions: th.Tensor  # type: ignore[assignment]
    rewards: th.Tensor  # type: ignore[assignment]
    dones: th.Tensor  # type: ignore[assignment]
    timeouts: th.Tensor  # type: ignore[assignment]

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
    ):
        if optimize_memory_usage:
            raise ValueError("DeviceReplayBuffer keeps next observations and needs optimize_memory_usage=False, got True")
        if isinstance(observation_space, spaces.Dict):
            raise TypeError("observation_space of a DeviceReplayBuffer must be no spaces.Dict, got one; use DictReplayBuffer")
        # SB3's own constructor would allocate everything in the host's memory
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        obs_dtype = _torch_dtype(observation_space.dtype)
        action_dtype = _torch_dtype(self._maybe_cast_dtype(action_space.dtype))
        self.observations = self._zeros(obs_dtype, *self.obs_shape)
        self.next_observations = self._zeros(obs_dtype, *self.obs_shape)
        self.actions = self._zeros(action_dtype, self.action_dim)
        self.rewards, self.dones, self.timeouts = (self._zeros(th.float32) for _ in range(3))

    def _zeros(self, dtype: th.dtype, *shape: int) -> th.Tensor:
        return th.zeros((self.buffer_size, self.n_envs, *shape), dtype=dtype, device=self.device)

    @property
    def device(self) -> th.device:
        """Device of the transitions. Setting it moves them, as SB3 does after loading."""
        return self._device

    @device.setter
    def device(self, device: th.device | str) -> None:
        self._device = get_device(device)
        for name in FIELDS:
            if name in self.__dict__:
                setattr(self, name, getattr(self, name).to(self._device))

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Add one transition of each environment.

        :param obs: ``(n_envs, *obs_shape)``
        :param next_obs: ``(n_envs, *obs_shape)``
        :param action: ``(n_envs, A)``
        :param reward: ``(n_envs,)``
        :param done: ``(n_envs,)``
        :param infos: of each environment; only ``TimeLimit.truncated`` is used
        """
        truncated = [bool(info.get("TimeLimit.truncated", False)) for info in infos]
        added = dict(observations=obs, next_observations=next_obs, actions=action, rewards=reward, dones=done)
        if self.handle_timeout_termination:
            added["timeouts"] = np.array(truncated)
        for name, value in added.items():
            row = getattr(self, name)[self.pos]
            row.copy_(th.from_numpy(np.array(value)).reshape(row.shape))  # a copy: the environment may write to its own
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full, self.pos = True, 0

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> ReplayBufferSamples:
        env_indices = np.random.randint(0, high=self.n_envs, size=(len(batch_inds),))
        index = th.from_numpy(batch_inds * self.n_envs + env_indices).to(self.device)
        dones = self._rows(self.dones, index)
        if self.handle_timeout_termination:  # only dones that are not due to timeouts
            dones = dones * (1.0 - self._rows(self.timeouts, index))
        return ReplayBufferSamples(
            self._normalized_obs(self._rows(self.observations, index), env),
            self._rows(self.actions, index),
            self._normalized_obs(self._rows(self.next_observations, index), env),
            dones.reshape(-1, 1),
            self._normalized_reward(self._rows(self.rewards, index).reshape(-1, 1), env),
        )

    @staticmethod
    def _rows(field: th.Tensor, index: th.Tensor) -> th.Tensor:
        return field.flatten(0, 1).index_select(0, index)

    def _normalized_obs(self, obs: th.Tensor, env: VecNormalize | None) -> th.Tensor:
        if env is None:
            return obs
        if type(env) is not VecNormalize:  # a subclass may normalize differently
            return self.to_torch(env.normalize_obs(obs.cpu().numpy()))  # type: ignore[arg-type]
        if not env.norm_obs:
            return obs
        statistics = env.obs_rms
        assert isinstance(statistics, RunningMeanStd)  # there are no dictionaries here
        mean, var = (th.as_tensor(part, device=self.device) for part in (statistics.mean, statistics.var))
        return ((obs - mean) / th.sqrt(var + env.epsilon)).clamp(-env.clip_obs, env.clip_obs).float()

    def _normalized_reward(self, reward: th.Tensor, env: VecNormalize | None) -> th.Tensor:
        if env is None:
            return reward
        if type(env) is not VecNormalize:
            return self.to_torch(env.normalize_reward(reward.cpu().numpy()))
        if not env.norm_reward:
            return reward
        scale = float(np.sqrt(env.ret_rms.var + env.epsilon))
        return (reward.double() / scale).clamp(-env.clip_reward, env.clip_reward).float()

    def __getstate__(self) -> dict[str, Any]:
        # As NumPy arrays, so that a file from a machine with a GPU can be read on one without
        return self.__dict__ | {name: self.__dict__[name].cpu().numpy() for name in FIELDS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {name: th.from_numpy(state[name]) for name in FIELDS})
        self.device = self._device if self._device.type != "cuda" or th.cuda.is_available() else "cpu"


def _torch_dtype(dtype: Any) -> th.dtype:
    return th.from_numpy(np.zeros(0, dtype)).dtype
