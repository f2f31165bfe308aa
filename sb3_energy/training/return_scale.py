"""The scale of the return, from everything that the environments have paid so far."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch as th
from torch import nn

LARGEST_VALUE = 5.0
"""Of a return, in units of the scale: one of few large returns has little weight in a standard deviation."""

SMALLEST_SCALE, LARGEST_SCALE = 1e-30, 1e30
"""Bounds of the scale. Single precision can divide by numbers between them and multiply them by values of a few thousands."""


class ReturnScale(nn.Module):
    """
    ``σ = max(std(G), max |G| / 5)`` of all discounted returns so far, with ``G ← γ G + r`` in each environment, which is read
    at each step and is 0 at the beginning of an episode. This is what Stable-Baselines3's ``VecNormalize`` divides rewards by,
    and a bound for returns that are large and rare. In 64 bits, by Welford's recursion (Welford 1962).

    :param n_envs: number of environments
    """

    statistics: th.Tensor
    """``(5,)``: number of returns, their mean, the sum of their squared deviations, the largest magnitude, and whether
    anything was learned from a reward other than 0 before the scale was known (0 or 1)."""

    def __init__(self, n_envs: int):
        super().__init__()
        self.register_buffer("statistics", th.zeros(5, dtype=th.float64, device="cpu"))
        self.reset(n_envs)

    def reset(self, n_envs: int) -> None:
        """
        Forget the running episodes, as when the environments are reset. The statistics are kept.

        :param n_envs: number of environments
        """
        self._running = [0.0] * n_envs

    @property
    def count(self) -> int:
        """Number of returns so far."""
        return int(self.statistics[0])

    @property
    def learned_from_rewards(self) -> bool:
        """Whether anything was learned from a reward other than 0 before the scale was known."""
        return bool(self.statistics[4])

    @learned_from_rewards.setter
    def learned_from_rewards(self, value: bool) -> None:
        self.statistics[4] = float(value)

    def observe(self, rewards: np.ndarray, dones: np.ndarray, gamma: float) -> None:
        """
        Record one step of each environment.

        :param rewards: ``(n_envs,)`` that the critic learns from, finite
        :param dones: ``(n_envs,)`` whether the episode ended with this step
        :param gamma: discount factor
        """
        running = self._running
        for index, reward in enumerate(rewards.tolist()):
            running[index] = gamma * running[index] + reward
        self._merge(running)
        if dones.any():
            self._running = [0.0 if done else value for value, done in zip(running, dones.tolist(), strict=True)]

    def observe_episodes(self, rewards: Sequence[np.ndarray], dones: Sequence[np.ndarray], gamma: float) -> None:
        """
        Record steps that others have stored, one after the other. Running episodes are not continued by them.

        :param rewards: ``(n, n_envs)``
        :param dones: ``(n, n_envs)``
        :param gamma: discount factor
        """
        before, self._running = self._running, [0.0] * np.shape(rewards)[1]
        for reward, done in zip(rewards, dones, strict=True):
            self.observe(reward, done, gamma)
        self._running = before

    def sigma(self, smallest: float = 0.0) -> float:
        """
        The scale of everything so far.

        :param smallest: its lower bound
        :return: ``σ``, or 0 where the bound is 0 and all returns are
        """
        count, _, squares, largest, _ = self.statistics.tolist()
        std = math.sqrt(squares / count) if count > 0.0 else 0.0
        found = max(std, largest / LARGEST_VALUE, smallest)
        return min(max(found, SMALLEST_SCALE), LARGEST_SCALE) if found > 0.0 else 0.0

    def _merge(self, returns: Iterable[float]) -> None:
        numbers = self.statistics.numpy()
        count, mean, squares, largest, _ = numbers.tolist()
        for value in returns:
            count += 1.0
            deviation = value - mean
            mean += deviation / count
            squares += deviation * (value - mean)
            largest = max(largest, abs(value))
        numbers[:4] = count, mean, squares, largest
