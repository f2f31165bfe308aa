"""The N-dimensional particle as a gymnasium environment."""

from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from sb3_energy.checks import check_bool
from sb3_energy.envs.drawing import Canvas
from sb3_energy.envs.particle import (
    GOAL_DISTANCE,
    HORIZON,
    POSITION_BOUNDS,
    VELOCITY_BOUNDS,
    Visits,
    check_n_dims,
    distances_to,
    draw_starts,
    frame_of,
    move,
)
from sb3_energy.envs.particle_expert import ParticleExpert

GOAL_COLOURS = ((214, 69, 65), (88, 166, 92))


class ParticleGoalsEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    A damped mass in ``N`` dimensions that is pulled to its action, a set-point in the unit cube, and has to visit two goals,
    one after the other (Florence et al. 2021, section 4). An episode has 50 steps and is truncated then, never earlier.

    Observations are two frames, the older one first, each of position, velocity, first goal and second goal. The reward is 1
    at the last step of an episode that has succeeded, and 0 else. ``info`` has the least distances so far
    (``"nearest_first"``, ``"nearest_second"``), the distance to the second goal now (``"final_second"``), and whether the
    episode, if it ended here, would be a success (``"is_success"``): both goals have been within .05, and the particle is
    within .05 of the second one.

    :param n_dims: ``N``, 1 to 32
    :param random_order: whether goals may be visited in any order; then a success ends at any of the two, and the expert
        draws which one is first
    :param render_mode: ``None`` or ``"rgb_array"``
    :raises ValueError: if an argument lies outside its range
    :raises TypeError: if an argument has the wrong type
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, n_dims: int = 2, random_order: bool = False, render_mode: str | None = None) -> None:
        self.n_dims = check_n_dims(n_dims)
        self.random_order = check_bool("random_order", random_order)
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode must be None or one of {self.metadata['render_modes']}, got {render_mode!r}")
        self.render_mode = render_mode
        low, high = (
            np.repeat([position, velocity, 0.0 if is_low else 1.0, 0.0 if is_low else 1.0], self.n_dims)
            for position, velocity, is_low in zip(POSITION_BOUNDS, VELOCITY_BOUNDS, (True, False), strict=True)
        )
        self.observation_space = spaces.Box(np.tile(low, 2).astype(np.float32), np.tile(high, 2).astype(np.float32))
        self.action_space = spaces.Box(0.0, 1.0, (self.n_dims,), np.float32)
        self._path: list[np.ndarray] = []

    def expert(self, seed: int | None = None) -> ParticleExpert:
        """
        Make the expert of this world.

        :param seed: of the order of its goals, where that is drawn
        :return: something with the ``predict`` of Stable-Baselines3's models
        """
        return ParticleExpert(self.n_dims, self.random_order, seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Draw a position and two goals in the unit cube; the particle is at rest.

        :param seed: seed of the random numbers
        :param options: there are none; gymnasium's interface has the argument
        :return: the first observation, both of whose frames are the same, and an info
        """
        super().reset(seed=seed)
        starts = draw_starts(self.np_random, 1, self.n_dims)
        self._goals, self._velocity = starts.goals, np.zeros((1, self.n_dims))
        self._path = [starts.positions]
        self._frames = [frame_of(starts.positions, self._velocity, starts.goals)] * 2
        self._visits = Visits(np.full((1, 2), np.inf), distances_to(starts.goals, starts.positions))
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        Pull toward the action for .05 units of time.

        :param action: ``(N,)``, clipped to ``[0, 1]``
        :return: observation, reward, ``False`` (no step ends an episode early), whether it was the last one, info
        :raises ValueError: if the action is not ``N`` finite numbers
        """
        if not 0 < len(self._path) <= HORIZON:
            raise ResetNeeded("call reset() before step(), and after the last step of an episode")
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (self.n_dims,) or not np.isfinite(action).all():
            raise ValueError(f"action must be {self.n_dims} finite numbers, got {action!r}")
        position, self._velocity = move(self._path[-1], self._velocity, np.clip(action, 0.0, 1.0))
        self._path.append(position)
        final = distances_to(self._goals, position)
        self._visits = Visits(np.minimum(self._visits.nearest, final), final)
        self._frames = [self._frames[1], frame_of(position, self._velocity, self._goals)]
        info, is_last = self._info(), len(self._path) == HORIZON + 1
        return self._observation(), float(is_last and info["is_success"]), False, is_last, info

    def render(self) -> np.ndarray | None:
        """
        The first two coordinates: the first goal in red, the second in green, the way so far. One dimension is a line.

        :return: ``(280, 280, 3)`` image, or ``None`` without a render mode
        """
        if self.render_mode is None:
            return None
        if not self._path:
            raise ResetNeeded("call reset() before render()")
        canvas = Canvas(0.75)
        canvas.fill(-np.abs(canvas.points).max(axis=-1).clip(0.5))
        for goal, colour in zip(self._goals[0], GOAL_COLOURS, strict=True):
            canvas.disc(_in_plane(goal), GOAL_DISTANCE, colour)
        points = [_in_plane(position[0]) for position in self._path]
        for start, end in pairwise(points):
            canvas.segment(start, end, (255, 255, 255))
        canvas.disc(points[-1], 0.025, (255, 196, 0))
        return canvas.image

    def _observation(self) -> np.ndarray:
        return np.concatenate(self._frames, axis=1)[0].astype(np.float32)

    def _info(self) -> dict[str, Any]:
        first, second = self._visits.nearest[0].tolist()
        return dict(
            nearest_first=first,
            nearest_second=second,
            final_second=float(self._visits.final[0, 1]),
            is_success=bool(self._visits.successes(self.random_order)[0]),
        )


def _in_plane(point: np.ndarray) -> np.ndarray:
    """The first two coordinates around the middle of the cube, the second one 0 where there is none."""
    return np.append(point, 0.5)[:2] - 0.5
