"""The four-goal problem: a point in a square, four equally good goals, so the right policy at the origin has four modes.

A unimodal policy has to give most of them up, which makes this the smallest problem that tells a multi-modal policy from a
Gaussian one. Its soft values are known: see :mod:`sb3_energy.envs.soft_values`.
"""

import numpy as np

from sb3_energy.checks import check_finite_number
from sb3_energy.envs.goals_env import GoalsEnv
from sb3_energy.envs.world import ACTION_COST, HORIZON, LIMIT, Transition, World

__all__ = [
    "ACTION_COST",
    "GOALS",
    "GOAL_BONUS",
    "GOAL_DISTANCE",
    "GOAL_NAMES",
    "HORIZON",
    "LIMIT",
    "MultiGoalEnv",
    "Transition",
    "four_goals",
    "standing_reward",
    "step_dynamics",
]

GOALS = np.array([(5.0, 0.0), (0.0, 5.0), (-5.0, 0.0), (0.0, -5.0)])
"""``(4, 2)``, counter-clockwise from the east."""
GOAL_NAMES = ("east", "north", "west", "south")
GOAL_DISTANCE = 5.0
GOAL_BONUS = 10.0


def four_goals(goal_threshold: float = 0.5) -> World:
    """
    The world of ``MultiGoal-v0``.

    :param goal_threshold: distance below which a goal counts as reached, in (0, 5)
    :return: four goals at a distance of 5, worth 10 each, with rewards as they are
    :raises ValueError: if the threshold lies outside its range
    :raises TypeError: if it is not a number
    """
    threshold = float(check_finite_number("goal_threshold", goal_threshold))
    if not 0.0 < threshold < GOAL_DISTANCE:
        raise ValueError(f"goal_threshold must lie in (0, {GOAL_DISTANCE:g}), got {goal_threshold!r}")
    return World(tuple((x, y) for x, y in GOALS.tolist()), (GOAL_BONUS,) * len(GOALS), goal_threshold=threshold)


def step_dynamics(states: np.ndarray, actions: np.ndarray, goal_threshold: float = 0.5) -> Transition:
    """
    One step of any number of points: ``s' = clip(s + a)`` and
    ``-30 |a|^2 - min_g |s' - g|^2 + 10 * 1[|s' - g| < threshold]``.
    The multi-goal environment of soft Q-learning (Haarnoja et al. 2017, section 5.1), as S2AC (Messaoud et al. 2024) has it.

    :param states: ``(..., 2)``
    :param actions: ``(..., 2)`` in ``[-1, 1]``; broadcasts against the states
    :param goal_threshold: distance below which a goal counts as reached
    :return: next states, rewards and goals
    """
    return four_goals(goal_threshold).step(states, actions)


class MultiGoalEnv(GoalsEnv):
    """
    The four-goal problem as a gymnasium environment; ``gym.make("MultiGoal-v0")`` adds the horizon of 30 steps.
    The multi-goal environment of soft Q-learning (Haarnoja et al. 2017, section 5.1).

    ``info`` says after each step which goal was reached (``"goal"``, -1 for none) and whether one was (``"is_success"``).

    :param goal_threshold: distance below which a goal counts as reached, in (0, 5)
    :param start_std: standard deviation of the start around the origin; 0 starts at the origin itself.
        Soft Q-learning's own setting is ``goal_threshold=1.0, start_std=0.1``
    :param render_mode: ``None`` or ``"rgb_array"``
    :raises ValueError: if an argument lies outside its range
    :raises TypeError: if a number is not a number
    """

    def __init__(self, goal_threshold: float = 0.5, start_std: float = 0.0, render_mode: str | None = None) -> None:
        super().__init__(four_goals(goal_threshold), start_std, render_mode)


def standing_reward(states: np.ndarray) -> np.ndarray:
    """
    Evaluate the distance part of the reward at a state.

    :param states: ``(..., 2)``
    :return: ``(...)`` minus the squared distance to the nearest goal: the reward of not moving, without the bonus
    """
    return four_goals().standing_reward(states)
