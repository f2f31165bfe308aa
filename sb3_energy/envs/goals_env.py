"""A world of goals as a gymnasium environment."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from sb3_energy.checks import check_finite_number
from sb3_energy.envs.drawing import Canvas
from sb3_energy.envs.world import LIMIT, World


class GoalsEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    One world; an episode starts at the origin and ends at a goal. The horizon is gymnasium's ``TimeLimit``, which
    ``gym.make`` adds.

    ``info`` says after each step which goal was reached (``"goal"``, -1 for none) and whether one was (``"is_success"``).

    :param world: goals, bonuses, reward scale and threshold
    :param start_std: standard deviation of the start around the origin; 0 starts at the origin itself
    :param render_mode: ``None`` or ``"rgb_array"``
    :raises ValueError: if an argument lies outside its range
    :raises TypeError: if a number is not a number
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, world: World, start_std: float = 0.0, render_mode: str | None = None) -> None:
        self.world = world
        self.start_std = float(check_finite_number("start_std", start_std))
        if not 0.0 <= self.start_std <= 1.0:
            raise ValueError(f"start_std must lie in [0, 1], got {start_std!r}")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be None or one of {self.metadata['render_modes']}, got {render_mode!r}")
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-LIMIT, LIMIT, (2,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._path: list[np.ndarray] = []

    @property
    def goal_threshold(self) -> float:
        """Distance below which a goal counts as reached."""
        return self.world.goal_threshold

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
        transition = self.world.step(self._path[-1], np.clip(action, -1.0, 1.0))
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
        canvas.fill(self.world.standing_reward(canvas.points))
        for goal in self.world.goals:
            canvas.disc(np.array(goal), self.goal_threshold, (214, 69, 65))
        for start, end in zip(self._path[:-1], self._path[1:], strict=True):
            canvas.segment(start, end, (255, 255, 255))
        canvas.disc(self._path[-1], 0.25, (255, 196, 0))
        return canvas.image

    def _observation(self) -> np.ndarray:
        return self._path[-1].astype(np.float32)
