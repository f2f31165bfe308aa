"""The expert of the N-dimensional particle, whose action jumps where it turns from one goal to the other."""

from typing import Any

import numpy as np

from sb3_energy.checks import check_bool, check_integer
from sb3_energy.envs.particle import check_n_dims

SWITCH_DISTANCE = 0.01
"""Distance to the one goal below which the expert turns to the other, once and for all."""

State = tuple[np.ndarray, np.ndarray]
"""``(n,)`` whether the goal that comes first has been reached, and ``(n,)`` its index."""


class ParticleExpert:
    """
    The set-point is the first goal until the particle has been within .01 of it, and the second one from then on
    (Florence et al. 2021, section 4). It keeps what it has reached in ``state``, as recurrent policies of
    Stable-Baselines3 do, so one expert acts in many environments at once, and ``evaluate_policy`` takes it for a model.

    :param n_dims: ``N``, 1 to 32
    :param random_order: whether each episode draws which goal comes first: then the same observation has two right actions
    :param seed: of these draws
    :raises ValueError: if a number is out of range
    :raises TypeError: if something has the wrong type
    """

    def __init__(self, n_dims: int = 2, random_order: bool = False, seed: int | None = None) -> None:
        self.n_dims = check_n_dims(n_dims)
        self.random_order = check_bool("random_order", random_order)
        self._rng = np.random.default_rng(None if seed is None else check_integer("seed", seed, minimum=0))

    def predict(
        self,
        observation: np.ndarray,
        state: State | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, State]:
        """
        Act on observations, as ``predict`` of Stable-Baselines3's models does.

        :param observation: ``(n, 8 N)``, or ``(8 N,)`` of one environment
        :param state: what the last call returned (``None``: every episode begins)
        :param episode_start: ``(n,)`` which episodes begin (``None``: all without a state, none with one)
        :param deterministic: it makes no difference: nothing but the order is drawn
        :return: ``(n, N)`` set-points, or ``(N,)``, and the state for the next call
        :raises ValueError: if a shape is another one
        """
        observation = np.asarray(observation)
        rows = np.atleast_2d(observation)
        if observation.ndim > 2 or rows.shape[1] != 8 * self.n_dims:
            raise ValueError(f"observation must have shape (n, {8 * self.n_dims}), got {observation.shape}")
        position, _, *goals = np.split(rows[:, 4 * self.n_dims :], 4, axis=1)
        has_reached, first = self._begun(len(rows), state, episode_start)
        index = np.arange(len(rows))
        both = np.stack(goals, axis=1)
        has_reached = has_reached | (np.linalg.norm(position - both[index, first], axis=1) < SWITCH_DISTANCE)
        actions = both[index, np.where(has_reached, 1 - first, first)]
        return (actions if observation.ndim == 2 else actions[0]), (has_reached, first)

    def _begun(self, n: int, state: State | None, episode_start: Any) -> State:
        begins = np.full(n, state is None) if episode_start is None else np.atleast_1d(np.asarray(episode_start, dtype=bool))
        if begins.shape != (n,):
            raise ValueError(f"episode_start must have shape ({n},), one for each observation, got {begins.shape}")
        if state is None:
            begins, state = np.ones(n, dtype=bool), (np.zeros(n, dtype=bool), np.zeros(n, dtype=np.int64))
        if len(state[0]) != n:
            raise ValueError(f"state must be of {n} observations, got one of {len(state[0])}")
        drawn = self._rng.integers(2, size=n) if self.random_order else np.zeros(n, dtype=np.int64)
        return state[0] & ~begins, np.where(begins, drawn, state[1])
