"""Small environments with known answers. Importing this package registers them with gymnasium."""

import gymnasium as gym

from sb3_energy.envs.multi_goal import HORIZON, MultiGoalEnv, step_dynamics

__all__ = ["MultiGoalEnv", "register_envs", "step_dynamics"]


def register_envs() -> None:
    """Register ``MultiGoal-v0``; an id that is registered already stays as it is."""
    if "MultiGoal-v0" not in gym.registry:
        gym.register(
            id="MultiGoal-v0",
            entry_point="sb3_energy.envs.multi_goal:MultiGoalEnv",
            max_episode_steps=HORIZON,
        )


register_envs()
