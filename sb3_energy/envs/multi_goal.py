"""The four-goal problem: a point in a square, four equally good goals, so the right policy at the origin has four modes.

A unimodal policy has to give most of them up, which makes this the smallest problem that tells a multi-modal policy from a
Gaussian one. Its soft values are known: see :mod:`sb3_energy.envs.soft_values`.
"""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from sb3_energy.checks import check_finite_number
from sb3_energy.envs.drawing import Canvas

GOALS = np.array([(5.0, 0.0), (0.0, 5.0), (-5.0, 0.0), (0.0, -5.0)])
"""``(4, 2)``, counter-clockwise from the east."""
GOAL_NAMES = ("east", "north", "west", "south")
LIMIT = 7.0
"""States live in ``[-LIMIT, LIMIT]^2``."""
HORIZON = 30
"""Steps after which an episode of ``MultiGoal-v0`` is truncated."""
GOAL_DISTANCE = 5.0
ACTION_COST = 30.0
GOAL_BONUS = 10.0


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
    next_states = np.clip(states + actions, -LIMIT, LIMIT)
    squared_distances = np.square(next_states[..., None, :] - GOALS).sum(-1)
    nearest = squared_distances.argmin(-1)
    squared_distance = squared_distances.min(-1)
    reached = squared_distance < goal_threshold**2
    rewards = GOAL_BONUS * reached - squared_distance - ACTION_COST * np.square(actions).sum(-1)
    return Transition(next_states, rewards, np.where(reached, nearest, -1))


class MultiGoalEnv(gym.Env[np.ndarray, np.ndarray]):
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

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, goal_threshold: float = 0.5, start_std: float = 0.0, render_mode: str | None = None) -> None:
        self.goal_threshold = float(check_finite_number("goal_threshold", goal_threshold))
        if not 0.0 < self.goal_threshold < GOAL_DISTANCE:
            raise ValueError(f"goal_threshold must lie in (0, {GOAL_DISTANCE:g}), got {goal_threshold!r}")
        self.start_std = float(check_finite_number("start_std", start_std))
        if not 0.0 <= self.start_std <= 1.0:
            raise ValueError(f"start_std must lie in [0, 1], got {start_std!r}")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be None or one of {self.metadata['render_modes']}, got {render_mode!r}")
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-LIMIT, LIMIT, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._path: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Start an episode at the origin, plus Gaussian noise.

        :param seed: seed of the start's random numbers
        :param options: there are none; gymnasium's interface has the argument
        :return: the first observation and an info
        """
        super().reset(seed=seed)
        start = self.start_std * self.np_random.standard_normal(2)
        self._path = [np.clip(start, -LIMIT, LIMIT)]
        return self._observation(), {"goal": -1, "is_success": False}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        Move by the action and collect the reward.

        :param action: ``(2,)``, clipped to ``[-1, 1]``
        :return: observation, reward, whether a goal was reached, ``False`` (the horizon is gymnasium's ``TimeLimit``), info
        :raises ValueError: if the action is not two finite numbers
        """
        if not self._path:
            raise ResetNeeded("call reset() before step()")
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f"action must be 2 finite numbers, got {action!r}")
        transition = step_dynamics(self._path[-1], np.clip(action, -1.0, 1.0), self.goal_threshold)
        self._path.append(transition.next_states)
        goal = int(transition.goals)
        return self._observation(), float(transition.rewards), goal >= 0, False, {"goal": goal, "is_success": goal >= 0}

    def render(self) -> np.ndarray | None:
        """
        The reward of standing still, the goals and the way so far.

        :return: ``(280, 280, 3)`` image, or ``None`` without a render mode
        """
        if self.render_mode is None:
            return None
        if not self._path:
            raise ResetNeeded("call reset() before render()")
        canvas = Canvas(LIMIT)
        canvas.fill(standing_reward(canvas.points))
        for goal in GOALS:
            canvas.disc(goal, self.goal_threshold, (214, 69, 65))
        for start, end in zip(self._path[:-1], self._path[1:], strict=True):
            canvas.segment(start, end, (255, 255, 255))
        canvas.disc(self._path[-1], 0.25, (255, 196, 0))
        return canvas.image

    def _observation(self) -> np.ndarray:
        return self._path[-1].astype(np.float32)


def standing_reward(states: np.ndarray) -> np.ndarray:
    """
    Evaluate the distance part of the reward at a state.

    :param states: ``(..., 2)``
    :return: ``(...)`` minus the squared distance to the nearest goal: the reward of not moving, without the bonus
    """
    return -np.square(states[..., None, :] - GOALS).sum(-1).min(-1)
