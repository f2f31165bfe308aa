"""Compares the critic's values with the returns that follow."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Comparison(NamedTuple):
    """
    Means over the steps of one finished episode.

    :param q_value: the critic's value of the actions when they were taken
    :param discounted_return: the discounted soft return that followed
    """

    q_value: float
    discounted_return: float


class ReturnTracker:
    """
    Keeps the Q-values of the running episodes until their returns are known.

    The return is the soft one that SAC's critic estimates, ``r_t + Σ_k γ^k (r_{t+k} + bonus_{t+k})``, with the bonus
    ``α`` times the policy's entropy. An episode cut off by a time limit is continued by the critic's own value of its
    last step, so that there the comparison sees only the error made before.

    :param n_envs: number of environments
    :param gamma: discount factor
    """

    def __init__(self, n_envs: int, gamma: float):
        self.comparisons: list[Comparison] = []
        self._n_envs = n_envs
        self.reset(gamma)

    def reset(self, gamma: float) -> None:
        """
        Forget the running episodes, as when the environments are reset. Comparisons of finished ones are kept.

        :param gamma: discount factor of those that follow
        """
        self.gamma = gamma
        self._episodes: list[list[tuple[float, float, float]]] = [[] for _ in range(self._n_envs)]
        self._pending: tuple[np.ndarray, float] | None = None

    def predict(self, q_values: np.ndarray, bonus: float) -> None:
        """
        Record the critic's Q-values before an environment step.

        :param q_values: ``(n_envs,)`` the critic's values of the actions about to be taken
        :param bonus: the entropy bonus of this step
        """
        self._pending = (q_values, bonus)

    def observe(self, rewards: np.ndarray, dones: np.ndarray, truncated: Sequence[bool]) -> list[Comparison]:
        """
        Record an environment step's rewards and compare Q-values with returns where episodes ended.

        :param rewards: ``(n_envs,)`` as the critic sees them
        :param dones: ``(n_envs,)`` whether the episode ended with this step
        :param truncated: whether it was a time limit that ended it
        :return: one comparison for each episode that ended and had predictions; they are kept until they are logged
        """
        if self._pending is not None:
            q_values, bonus = self._pending
            for episode, q_value, reward in zip(self._episodes, q_values, rewards, strict=True):
                episode.append((float(q_value), float(reward), bonus))
            self._pending = None
        finished = []
        for index in np.flatnonzero(dones).tolist():
            if self._episodes[index]:
                finished.append(compare(self._episodes[index], self.gamma, truncated[index]))
            self._episodes[index] = []
        self.comparisons += finished
        return finished

    def record(self, logger: Any) -> None:
        """
        Log the mean of the comparisons since the last call.

        :param logger: SB3's
        """
        q_value, discounted_return = np.mean(self.comparisons, axis=0)
        logger.record("train/q_value", q_value)
        logger.record("train/discounted_return", discounted_return)
        logger.record("train/overestimation", q_value - discounted_return)
        self.comparisons = []


def compare(episode: list[tuple[float, float, float]], gamma: float, truncated: bool) -> Comparison:
    """
    Compare the Q-values of an episode with its discounted soft returns.

    :param episode: Q-value, reward and entropy bonus of each step
    :param gamma: discount factor
    :param truncated: whether the last Q-value continues the episode
    :return: means over the steps
    """
    q_values, rewards, bonuses = (np.array(column) for column in zip(*episode, strict=True))
    returns = np.empty_like(rewards)
    returns[-1] = q_values[-1] if truncated else rewards[-1]
    for t in range(len(rewards) - 2, -1, -1):
        returns[t] = rewards[t] + gamma * (bonuses[t + 1] + returns[t + 1])
    return Comparison(float(q_values.mean()), float(returns.mean()))
