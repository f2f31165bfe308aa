"""Worlds of goals: a point in a square that is drawn to goals, whose rewards and dynamics are functions of arrays."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sb3_energy.checks import check_finite_number, check_number

LIMIT = 7.0
"""States live in ``[-LIMIT, LIMIT]^2``."""
HORIZON = 30
"""Steps after which an episode is truncated."""
ACTION_COST = 30.0


class Transition(NamedTuple):
    """
    Where steps lead.

    :param next_states: ``(..., 2)``
    :param rewards: ``(...)``
    :param goals: ``(...)`` index of the goal that was reached, -1 where none was; reaching one ends the episode
    """

    next_states: np.ndarray
    rewards: np.ndarray
    goals: np.ndarray


@dataclass(frozen=True)
class World:
    """
    Goals in the square ``[-7, 7]^2`` and what they are worth. The dynamics is that of the multi-goal environment of soft
    Q-learning (Haarnoja et al. 2017, section 5.1), with any goals.

    :param goals: ``G`` points of the square, none of them nearer to the origin, where episodes start, than the threshold
    :param bonuses: ``G`` numbers, one for each goal: what reaching it adds to the reward
    :param reward_scale: factor of every reward, above 0
    :param goal_threshold: distance below which a goal counts as reached, above 0
    :raises ValueError: if an argument lies outside its range
    :raises TypeError: if a number is not a number
    """

    goals: tuple[tuple[float, float], ...]
    bonuses: tuple[float, ...]
    reward_scale: float = 1.0
    goal_threshold: float = 0.5

    def __post_init__(self) -> None:
        threshold = float(check_number("goal_threshold", self.goal_threshold, strict=True))
        object.__setattr__(self, "goal_threshold", threshold)
        object.__setattr__(self, "reward_scale", float(check_number("reward_scale", self.reward_scale, strict=True)))
        object.__setattr__(self, "goals", _check_goals(self.goals, threshold))
        object.__setattr__(self, "bonuses", _check_bonuses(self.bonuses, len(self.goals)))

    @property
    def n_goals(self) -> int:
        """How many goals there are."""
        return len(self.goals)

    def nearest(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        Find the nearest goal.

        :param states: ``(..., 2)``
        :return: ``(...)`` its index and ``(...)`` its squared distance
        """
        squared_distances = np.square(states[..., None, :] - np.array(self.goals)).sum(-1)
        return squared_distances.argmin(-1), squared_distances.min(-1)

    def step(self, states: np.ndarray, actions: np.ndarray) -> Transition:
        """
        One step of any number of points: ``s' = clip(s + a)`` and
        ``scale * (-30 |a|^2 - min_g |s' - g|^2 + bonus_g * 1[|s' - g| < threshold])``, with the bonus of the nearest goal.

        :param states: ``(..., 2)``
        :param actions: ``(..., 2)`` in ``[-1, 1]``; broadcasts against the states
        :return: next states, rewards and goals
        """
        next_states = np.clip(states + actions, -LIMIT, LIMIT)
        nearest, squared_distance = self.nearest(next_states)
        reached = squared_distance < self.goal_threshold**2
        rewards = np.array(self.bonuses)[nearest] * reached - squared_distance - ACTION_COST * np.square(actions).sum(-1)
        return Transition(next_states, self.reward_scale * rewards, np.where(reached, nearest, -1))

    def standing_reward(self, states: np.ndarray) -> np.ndarray:
        """
        Evaluate the distance part of the reward at a state.

        :param states: ``(..., 2)``
        :return: ``(...)`` minus the squared distance to the nearest goal, scaled: the reward of not moving, without a bonus
        """
        return -self.reward_scale * self.nearest(states)[1]


def _check_goals(goals: Any, goal_threshold: float) -> tuple[tuple[float, float], ...]:
    try:
        points = np.asarray(goals, dtype=np.float64)
    except (TypeError, ValueError):
        points = np.empty(0)
    if points.ndim != 2 or len(points) == 0 or points.shape[1] != 2:
        raise ValueError(f"goals must be one or more points (x, y), got {goals!r}")
    if not (np.abs(points) <= LIMIT).all():
        raise ValueError(f"goals must lie in [-{LIMIT:g}, {LIMIT:g}]^2, got {goals!r}")
    if not (np.linalg.norm(points, axis=1) >= goal_threshold).all():
        raise ValueError(
            f"goals must be at least goal_threshold={goal_threshold:g} from the origin, where episodes start, got {goals!r}"
        )
    return tuple((float(x), float(y)) for x, y in points)


def _check_bonuses(bonuses: Any, n_goals: int) -> tuple[float, ...]:
    if np.ndim(bonuses) != 1 or len(bonuses) != n_goals:
        raise ValueError(f"bonuses must be {n_goals} numbers, one for each goal, got {bonuses!r}")
    return tuple(float(check_finite_number("bonuses", bonus, "numbers")) for bonus in bonuses)
