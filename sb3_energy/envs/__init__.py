"""Small environments and data sets with known answers. Importing this package registers the environments with gymnasium."""

import gymnasium as gym

from sb3_energy.envs.dot_images import DotImages, split_by_hull
from sb3_energy.envs.functions import StepFunction, TwoValuedFunction, inside_hull
from sb3_energy.envs.multi_goal import MultiGoalEnv, step_dynamics
from sb3_energy.envs.particle import HORIZON as PARTICLE_HORIZON
from sb3_energy.envs.particle import Episodes, Starts, Visits, draw_starts, run_episodes
from sb3_energy.envs.particle_env import ParticleGoalsEnv
from sb3_energy.envs.particle_expert import ParticleExpert
from sb3_energy.envs.random_goals import RandomGoalsEnv, draw_world
from sb3_energy.envs.world import HORIZON, Transition, World

__all__ = [
    "DotImages",
    "Episodes",
    "MultiGoalEnv",
    "ParticleExpert",
    "ParticleGoalsEnv",
    "RandomGoalsEnv",
    "Starts",
    "StepFunction",
    "Transition",
    "TwoValuedFunction",
    "Visits",
    "World",
    "draw_starts",
    "draw_world",
    "inside_hull",
    "register_envs",
    "run_episodes",
    "split_by_hull",
    "step_dynamics",
]

ENVS = {
    "MultiGoal-v0": ("sb3_energy.envs.multi_goal:MultiGoalEnv", HORIZON),
    "RandomGoals-v0": ("sb3_energy.envs.random_goals:RandomGoalsEnv", HORIZON),
    "ParticleGoals-v0": ("sb3_energy.envs.particle_env:ParticleGoalsEnv", PARTICLE_HORIZON),
}
"""Id -> class and most steps of an episode."""


def register_envs() -> None:
    """Register the ids of :data:`ENVS`; an id that is registered already stays as it is."""
    for env_id, (entry_point, most_steps) in ENVS.items():
        if env_id not in gym.registry:
            gym.register(id=env_id, entry_point=entry_point, max_episode_steps=most_steps)


register_envs()
