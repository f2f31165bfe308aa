"""Known answers of a world of goals: shares of goals, best first actions and their soft Q-values, balanced temperature."""

from dataclasses import dataclass

import numpy as np

from sb3_energy.envs.lattice import goal_shares, lattice_values
from sb3_energy.envs.soft_values import action_grid
from sb3_energy.envs.world import HORIZON, World

TEMPERATURES = tuple(0.5 * 2.0 ** (k / 2.0) for k in range(10))
"""Temperatures that :func:`balanced_temperature` tries, in units of the reward scale: .5 to 11 by factors of ``sqrt(2)``."""
BALANCED_SHARE = 0.15
"""The share that a goal must have to count as a mode."""


@dataclass(frozen=True)
class ExactAnswer:
    """
    What a perfect learner would find.

    :param world: goals and rewards
    :param alpha: temperature in the world's rewards
    :param shares: ``(G,)`` shares of goals among episodes from the origin; what is missing to 1 reaches no goal
    :param first_actions: ``(G, 2)`` the first action of highest Q-value among those whose direction is nearest to that of
        each goal
    :param q_values: ``(G,)`` their soft Q-values at the origin
    :param soft_value: at the origin
    """

    world: World
    alpha: float
    shares: np.ndarray
    first_actions: np.ndarray
    q_values: np.ndarray
    soft_value: float


def exact_answer(world: World, alpha: float, n_actions: int = 31, gamma: float = 0.99, horizon: int = HORIZON) -> ExactAnswer:
    """
    Solve a world. Shares are accurate to about .01 (docs/random_goals.md).

    :param world: goals and rewards
    :param alpha: temperature in the world's rewards, above 0
    :param n_actions: points of an axis of the actions, odd: the accuracy
    :param gamma: discount, in [0, 1)
    :param horizon: steps after which an episode is over
    :return: the answer
    :raises ValueError: if an argument lies outside its range
    :raises RuntimeError: if the values do not converge
    """
    values = lattice_values(world, alpha, n_actions, gamma)
    origin = np.zeros(2)
    actions = action_grid(n_actions)[0].reshape(-1, 2)
    q_values = values.q_value(origin, actions)
    directions = np.array(world.goals) / np.linalg.norm(world.goals, axis=1, keepdims=True)
    toward = (actions @ directions.T).argmax(axis=1)
    best = np.array([np.where(toward == goal, q_values, -np.inf).argmax() for goal in range(world.n_goals)])
    shares = goal_shares(values, horizon)
    return ExactAnswer(world, values.alpha, shares, actions[best], q_values[best], float(values.value(origin)))


def balanced_temperature(world: World) -> float:
    """
    The smallest temperature of a geometric grid (:data:`TEMPERATURES` times the reward scale) at which at least two goals
    have a share of .15 or more: the lowest at which a policy that keeps one mode is wrong.

    :param world: goals and rewards
    :return: the temperature, in the world's rewards
    :raises ValueError: if there is none on the grid, such as with one goal, or with bonuses too far apart
    """
    for temperature in TEMPERATURES:
        alpha = temperature * world.reward_scale
        if np.sum(goal_shares(lattice_values(world, alpha)) >= BALANCED_SHARE) >= 2:
            return alpha
    raise ValueError(
        f"world must have two goals of a share of {BALANCED_SHARE} at a temperature of at most {TEMPERATURES[-1]:.3g} times "
        f"its reward scale, got {world}"
    )
