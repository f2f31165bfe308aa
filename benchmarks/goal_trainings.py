"""Trainings on the four-goal problem for the claims, kept in files: what is there is not trained again."""

import operator
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env

from sb3_energy import PGAC, EnergySAC
from sb3_energy.envs.multi_goal import HORIZON, four_goals
from sb3_energy.envs.world import World

REWARD_SCALE, ENT_COEF = 0.05, 3.0
"""Rewards and entropy coefficient are scaled alike, which changes no optimal policy."""

PLAIN: dict[str, Any] = dict(net_arch=[256, 256], backbone="plain")
POLICIES: Mapping[str, tuple[type[SAC], dict[str, Any]]] = {
    "sac": (SAC, dict(policy_kwargs=dict(net_arch=[256, 256]))),
    "sac_layer_norm": (EnergySAC, dict(policy_kwargs=dict(net_arch=[256, 256], refiner="none", backbone="layer_norm"))),
    "energy_sac": (EnergySAC, dict(policy_kwargs=PLAIN)),
    "energy_sac_one_particle": (EnergySAC, dict(policy_kwargs=PLAIN | dict(n_particles=1))),
    "pgac": (PGAC, dict(policy_kwargs=PLAIN)),
    "pgac_best": (PGAC, dict(policy_kwargs=PLAIN, potential_training_kwargs=dict(positives="best"))),
}
Act = Callable[[np.ndarray], np.ndarray]
"""``(n, 2)`` states to ``(n, 2)`` actions."""


class Preferred(gym.RewardWrapper):
    """
    A bonus for the goal in the east, in units of the problem's rewards.

    :param env: ``MultiGoal-v0``
    :param bonus: for reaching it
    """

    def __init__(self, env: gym.Env, bonus: float):
        super().__init__(env)
        self.bonus = bonus

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, REWARD_SCALE * (float(reward) + self.bonus * (info["goal"] == 0)), terminated, truncated, info

    def reward(self, reward: Any) -> Any:
        return reward


def trained(name: str, seed: int, folder: Path, timesteps: int, bonus: float = 0.0) -> SAC:
    """
    :param name: in :data:`POLICIES`
    :param seed: of the training
    :param folder: where models are kept
    :param timesteps: of the training, of which the first eighth is of uniform actions
    :param bonus: of the goal in the east
    :return: the model, which was trained or loaded
    """
    algorithm, kwargs = POLICIES[name]
    path = folder / f"{name}_bonus{bonus:g}_steps{timesteps}_seed{seed}.zip"
    if path.exists():
        return algorithm.load(path, device="cpu")
    env = make_vec_env("MultiGoal-v0", n_envs=4, seed=seed, wrapper_class=Preferred, wrapper_kwargs=dict(bonus=bonus))
    others = dict(ent_coef=ENT_COEF * REWARD_SCALE, learning_starts=timesteps // 8, seed=seed, device="cpu")
    model = algorithm("MlpPolicy", env, **others, **kwargs).learn(timesteps)
    folder.mkdir(parents=True, exist_ok=True)
    model.save(path)
    return model


class Played(NamedTuple):
    """
    Episodes from the origin.

    :param goals: ``(n,)`` index of the goal that was reached, -1 for none
    :param returns: ``(n,)`` without the bonus of a goal that is preferred
    :param n_goals: how many goals there are
    """

    goals: np.ndarray
    returns: np.ndarray
    n_goals: int

    @property
    def shares(self) -> list[float]:
        """Of the episodes that reached each goal."""
        return [float((self.goals == goal).mean()) for goal in range(self.n_goals)]

    @property
    def lost(self) -> float:
        """Of the episodes that reached none."""
        return float((self.goals < 0).mean())


def play(act: Act, n_episodes: int, wall: tuple[float, float] | None = None, world: World | None = None) -> Played:
    """
    :param act: a policy, which is asked for the episodes that go on
    :param n_episodes: side by side
    :param wall: ``(x, half its height)`` of a wall across the way to the east, which stops whoever meets it (``None``: none)
    :param world: where they are played (``None``: the four goals)
    :return: how they ended
    """
    world = four_goals() if world is None else world
    states, goals, returns = np.zeros((n_episodes, 2)), np.full(n_episodes, -1), np.zeros(n_episodes)
    for _ in range(HORIZON):
        running = np.flatnonzero(goals < 0)
        if len(running) == 0:
            break
        before = states[running]
        moved = world.step(before, np.clip(act(before), -1.0, 1.0))
        after, reached = moved.next_states, moved.goals
        if wall is not None:
            after = stopped(before, moved.next_states, *wall)
            reached = np.where((after != moved.next_states).any(axis=1), -1, reached)
        states[running], goals[running] = after, reached
        returns[running] += moved.rewards
    return Played(goals, returns, world.n_goals)


def stopped(before: np.ndarray, after: np.ndarray, x: float, half_height: float) -> np.ndarray:
    """
    :param before: ``(n, 2)`` states
    :param after: ``(n, 2)`` where they would go
    :param x: of the wall, which is upright
    :param half_height: of it, around ``y = 0``
    :return: ``(n, 2)`` where they go: those that would cross it stop just before it, and may go along it
    """
    crosses = (before[:, 0] < x) & (after[:, 0] >= x)
    part = (x - before[:, 0]) / np.where(crosses, after[:, 0] - before[:, 0], 1.0)
    y = before[:, 1] + part * (after[:, 1] - before[:, 1])
    blocked = crosses & (np.abs(y) < half_height)
    return np.where(blocked[:, None], np.stack([np.full(len(after), x - 1e-3), after[:, 1]], axis=1), after)


def acting(model: SAC, deterministic: bool = False) -> Act:
    """
    :param model: a trained one
    :param deterministic: whether it acts without noise
    :return: its policy
    """
    return partial(_act, model, deterministic)


def _act(model: SAC, deterministic: bool, states: np.ndarray) -> np.ndarray:
    return operator.itemgetter(0)(model.predict(states.astype(np.float32), deterministic=deterministic))
