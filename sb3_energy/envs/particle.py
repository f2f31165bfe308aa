"""
The N-dimensional particle: a damped mass that is pulled to a set-point has to visit two goals, one after the other.

The problem on which implicit behavioral cloning was compared with explicit policies (Florence et al. 2021, section 4): where
the expert turns from one goal to the other its action jumps, in as many dimensions as wanted. Everything here is a function of
arrays.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from sb3_energy.checks import check_bool, check_integer

MOST_DIMENSIONS = 32
HORIZON = 50
"""Actions of an episode, which never ends earlier."""
EULER_STEPS = 10
"""Steps of the dynamics during one action."""
TIME_STEP = 0.005
STIFFNESS, DAMPING = 10.0, 5.0
"""Of the force that pulls to the set-point."""
GOAL_DISTANCE = 0.05
"""Distance below which a goal counts as visited."""
POSITION_BOUNDS, VELOCITY_BOUNDS = (-1.0, 2.0), (-3.0, 3.0)
"""Of observations. No set-points in the unit cube lead beyond (-.52, 1.52) and ±2.07 (``tests/envs/test_particle.py``)."""


class Starts(NamedTuple):
    """
    How episodes begin; the velocity is 0.

    :param positions: ``(n, N)``
    :param goals: ``(n, 2, N)``
    """

    positions: np.ndarray
    goals: np.ndarray


class Visits(NamedTuple):
    """
    How near to its goals an episode has come, after each of its actions so far; the start does not count.

    :param nearest: ``(n, 2)`` least distances to both goals
    :param final: ``(n, 2)`` distances now
    """

    nearest: np.ndarray
    final: np.ndarray

    def successes(self, random_order: bool = False) -> np.ndarray:
        """
        Whether both goals have been visited and the particle is at the second one, or at any of the two if the order is free.

        :param random_order: whether it is
        :return: ``(n,)``
        """
        at_goal = self.final < GOAL_DISTANCE
        at_end = at_goal.any(axis=1) if random_order else at_goal[:, 1]
        return np.logical_and((self.nearest < GOAL_DISTANCE).all(axis=1), at_end)


def draw_starts(rng: np.random.Generator, n_episodes: int, n_dims: int) -> Starts:
    """
    Draw where episodes begin: positions and goals uniform in the unit cube.

    :param rng: source of the random numbers
    :param n_episodes: how many
    :param n_dims: ``N``, 1 to 32
    :return: the starts
    :raises ValueError: if a number is out of range
    :raises TypeError: if a number is not an integer
    """
    n = check_integer("n_episodes", n_episodes, minimum=1)
    points = rng.random((n, 3, check_n_dims(n_dims)))
    return Starts(points[:, 0], points[:, 1:])


def check_n_dims(n_dims: Any) -> int:
    """
    Check the number of dimensions.

    :param n_dims: an integer from 1 to 32
    :return: the plain integer
    :raises ValueError: if it is out of range
    :raises TypeError: if it is not an integer
    """
    return check_integer("n_dims", n_dims, minimum=1, maximum=MOST_DIMENSIONS)


def move(positions: np.ndarray, velocities: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    One action: ten explicit Euler steps of ``q' = v``, ``v' = 10 (a - q) - 5 v``, each from the values of the step before.

    :param positions: ``(..., N)``
    :param velocities: ``(..., N)``
    :param actions: ``(..., N)`` set-points, in ``[0, 1]``
    :return: positions and velocities after it
    """
    for _ in range(EULER_STEPS):
        forces = STIFFNESS * (actions - positions) - DAMPING * velocities
        positions, velocities = positions + TIME_STEP * velocities, velocities + TIME_STEP * forces
    return positions, velocities


def distances_to(goals: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """
    Euclidean distances.

    :param goals: ``(n, 2, N)``
    :param positions: ``(n, N)``
    :return: ``(n, 2)``
    """
    return np.linalg.norm(goals - positions[:, None], axis=2)


def frame_of(positions: np.ndarray, velocities: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """
    One frame of an observation.

    :param positions: ``(n, N)``
    :param velocities: ``(n, N)``
    :param goals: ``(n, 2, N)``
    :return: ``(n, 4 N)``: position, velocity, first goal, second goal
    """
    return np.concatenate([positions, velocities, goals[:, 0], goals[:, 1]], axis=1)


class Model(Protocol):
    """What acts: a model or policy of Stable-Baselines3, or the world's expert."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """``(n, 8 N) -> (n, N)``, and the state that the next call is given."""
        ...


@dataclass(frozen=True)
class Episodes:
    """
    Episodes of equal length, as arrays.

    :param observations: ``(n, 51, 8 N)``, the last of each episode included
    :param actions: ``(n, 50, N)``
    :param visits: how near to their goals they came
    :param random_order: whether goals may be visited in any order
    """

    observations: np.ndarray
    actions: np.ndarray
    visits: Visits
    random_order: bool = False

    @property
    def successes(self) -> np.ndarray:
        """``(n,)`` whether they have succeeded."""
        return self.visits.successes(self.random_order)

    def transitions(self) -> dict[str, np.ndarray]:
        """
        All steps, one episode after the other, under gymnasium's names.

        :return: ``observations``, ``actions``, ``next_observations`` with a row for each step, and ``rewards``,
            ``terminations``, ``truncations`` with a number for each
        """
        n, length = self.actions.shape[:2]
        ends = np.zeros((n, length), dtype=bool)
        ends[:, -1] = True
        return dict(
            observations=self.observations[:, :-1].reshape(n * length, -1),
            actions=self.actions.reshape(n * length, -1),
            next_observations=self.observations[:, 1:].reshape(n * length, -1),
            rewards=np.where(ends, self.successes[:, None], False).astype(np.float32).ravel(),
            terminations=np.zeros(n * length, dtype=bool),
            truncations=ends.ravel(),
        )


def run_episodes(model: Model, starts: Starts, random_order: bool = False, deterministic: bool = True) -> Episodes:
    """
    Run a model in many episodes at once, without environments: the same numbers as ``ParticleGoals-v0`` gives one after the
    other.

    :param model: what acts
    :param starts: where episodes begin, of :func:`draw_starts`
    :param random_order: whether goals may be visited in any order
    :param deterministic: handed to ``model.predict``
    :return: the episodes
    :raises ValueError: if the model's actions have another shape, or are not finite
    :raises TypeError: if ``random_order`` is no bool
    """
    random_order = check_bool("random_order", random_order)
    positions, goals = starts
    velocities = np.zeros_like(positions)
    frames = [frame_of(positions, velocities, goals)] * 2
    observations, actions, state = [_stacked(frames)], [], None
    nearest = final = np.full((len(positions), 2), np.inf)
    for step in range(HORIZON):
        episode_start = np.full(len(positions), step == 0)
        action, state = model.predict(observations[-1], state, episode_start, deterministic)
        actions.append(_checked(action, positions.shape))
        positions, velocities = move(positions, velocities, np.clip(actions[-1].astype(np.float64), 0.0, 1.0))
        final = distances_to(goals, positions)
        nearest = np.minimum(nearest, final)
        frames = [frames[1], frame_of(positions, velocities, goals)]
        observations.append(_stacked(frames))
    return Episodes(np.stack(observations, axis=1), np.stack(actions, axis=1), Visits(nearest, final), random_order)


def _stacked(frames: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(frames, axis=1).astype(np.float32)


def _checked(action: Any, shape: tuple[int, ...]) -> np.ndarray:
    action = np.asarray(action, dtype=np.float32)
    if action.shape != shape or not np.isfinite(action).all():
        raise ValueError(f"model.predict must return {shape} finite actions, got shape {action.shape}: {action!r}")
    return action
