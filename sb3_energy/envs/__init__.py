"""Small environments with known answers. Importing this package registers them with gymnasium."""

import gymnasium as gym

from sb3_energy.envs.multi_goal import MultiGoalEnv, step_dynamics
from sb3_energy.envs.random_goals import RandomGoalsEnv, draw_world
from sb3_energy.envs.world import HORIZON, Transition, World

__all__ = ["MultiGoalEnv", "RandomGoalsEnv", "Transition", "World", "draw_world", "register_envs", "step_dynamics"]

ENVS = {
    "MultiGoal-v0": "sb3_energy.envs.multi_goal:MultiGoalEnv",
    "RandomGoals-v0": "sb3_energy.envs.random_goals:RandomGoalsEnv",
}
"""Id -> class."""


def register_envs() -> None:
    """Register ``MultiGoal-v0`` and ``RandomGoals-v0``; an id that is registered already stays as it is."""
    for env_id, entry_point in ENVS.items():
        if env_id not in gym.registry:
            gym.register(id=env_id, entry_point=entry_point, max_episode_steps=HORIZON)


register_envs()
