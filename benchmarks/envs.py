"""Environments of the returns benchmark: one float32 vector in, one action out, a fixed number of repeats of the action."""

from typing import Any

import gymnasium as gym
import numpy as np

DM_CONTROL = "dm_control/"


class ActionRepeat(gym.Wrapper[Any, Any, Any, Any]):
    """
    Repeats each action and adds the rewards, stopping at an episode's end.
    The customary protocol for dm_control (PlaNet, Hafner et al. 2019): 1000 physics steps are 500 policy steps at 2 repeats.

    :param env: the environment
    :param repeats: how often each action is taken
    """

    def __init__(self, env: gym.Env[Any, Any], repeats: int) -> None:
        super().__init__(env)
        if repeats < 1:
            raise ValueError(f"action_repeat must be at least 1, got {repeats}")
        self.repeats = repeats

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self.repeats):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


def default_action_repeat(env_id: str) -> int:
    """
    :param env_id: the environment's gymnasium id
    :return: 2 for dm_control, 1 for everything else
    """
    return 2 if env_id.startswith(DM_CONTROL) else 1


def make_env(env_id: str, action_repeat: int) -> gym.Env[Any, Any]:
    """
    :param env_id: a gymnasium id; ``dm_control/<domain>-<task>-v0`` comes through shimmy
    :param action_repeat: how often each action is taken; one policy step is that many environment steps
    :return: the environment, with dictionaries flattened and float64 observations cast to float32
    """
    if env_id.startswith(DM_CONTROL):
        import shimmy

        gym.register_envs(shimmy)
    if env_id.startswith("MultiGoal"):
        import sb3_energy.envs  # noqa: F401  registers the id
    env = gym.make(env_id)
    if isinstance(env.observation_space, gym.spaces.Dict):
        env = gym.wrappers.FlattenObservation(env)
    if env.observation_space.dtype == np.float64:
        env = gym.wrappers.DtypeObservation(env, np.float32)
    return ActionRepeat(env, action_repeat) if action_repeat != 1 else env
