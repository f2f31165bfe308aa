"""Exploration beyond the policy's own draws: actions that an exact sampler of ``exp(Q / α)`` would not take."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th

from sb3_energy.checks import check_integer, check_number, plain_fields
from sb3_energy.policies.refined_policy import RefinedPolicy
from sb3_energy.registry import resolve


@dataclass
class Exploration:
    """
    Changes the actions that collect experience. A subclass overrides one of the methods. Numbers are drawn from NumPy's global
    generator, which SB3 seeds.
    """

    def begin(self, n_envs: int, n_actions: int) -> None:
        """
        Forget running episodes, when the environments are reset.

        :param n_envs: number of environments
        :param n_actions: ``A``, number of an action's coordinates
        """

    def check(self, policy: RefinedPolicy, refines: bool) -> None:
        """
        Check, at construction, that the policy can be explored with.

        :param policy: which draws the actions that are explored with
        :param refines: whether the actions that collect experience are refined
        :raises ValueError: if it cannot
        """

    def acting(self, policy: RefinedPolicy) -> AbstractContextManager[Any]:
        """
        Change how the policy draws.

        :param policy: which draws the actions that are explored with
        :return: context within which it does
        """
        return nullcontext()

    def actions(self, actions: np.ndarray) -> np.ndarray:
        """
        Change actions before they are taken and stored.

        :param actions: ``(n_envs, *A)``, scaled to [-1, 1]: the policy's, or random ones before ``learning_starts``
        :return: those that are taken, in the same units
        """
        return actions

    def observe(self, dones: np.ndarray) -> None:
        """
        Take notice of an environment step.

        :param dones: ``(n_envs,)`` whether the episode ended
        """


@dataclass
class HeldActions(Exploration):
    """
    Bursts of one action, drawn uniformly from the box and held. Each environment begins a burst at random, so that at each
    step of an episode, the first one included, it is in one with the same probability, and ends it with its episode at the
    latest. In a young critic ``Q`` is far too low where little was seen, so that ``exp(Q / α)`` never goes
    there again and nothing mends it. Independent random actions do not help: their sum stays where it is. Held ones go far, as
    do the repeated ones of ε-greedy exploration (Dabney et al. 2021, "Temporally-extended ε-greedy exploration", section 3).

    :param fraction: probability that a step belongs to a burst, in [0, 1)
    :param mean_length: mean number of steps of a burst, at least 1; lengths have a geometric law, so that how long a burst has
        lasted says nothing of how long it will
    :raises ValueError: if a number is out of range
    :raises TypeError: if one is not a number
    """

    fraction: float = 0.2
    mean_length: float = 8.0

    def __post_init__(self) -> None:
        plain_fields(self)
        check_number("fraction", self.fraction)
        if not self.fraction < 1.0:
            raise ValueError(f"fraction must lie in [0, 1), got {self.fraction!r}")
        check_number("mean_length", self.mean_length)
        if not self.mean_length >= 1.0:
            raise ValueError(f"mean_length must be at least 1, got {self.mean_length!r}")
        self.begin(1, 1)

    def begin(self, n_envs: int, n_actions: int) -> None:
        """
        End all bursts.

        :param n_envs: number of environments
        :param n_actions: ``A``
        """
        self._left = np.zeros(n_envs, dtype=np.int64)
        self._is_first = np.ones(n_envs, dtype=bool)
        self._held = np.zeros((n_envs, n_actions), dtype=np.float32)

    def actions(self, actions: np.ndarray) -> np.ndarray:
        """
        Replace the actions of environments that are in a burst.

        :param actions: ``(n_envs, *A)``, scaled to [-1, 1]
        :return: the same, with held ones in place of some
        """
        # A cycle is, on average, 1 / start - 1 steps of the policy and a burst
        start = self.fraction / (self.fraction + self.mean_length * (1.0 - self.fraction))
        probability = np.where(self._is_first, self.fraction, start)
        starting = np.flatnonzero((self._left == 0) & (np.random.random(len(self._left)) < probability))
        self._is_first[:] = False
        self._left[starting] = np.random.geometric(1.0 / self.mean_length, len(starting))
        self._held[starting] = np.random.uniform(-1.0, 1.0, (len(starting), self._held.shape[1]))
        held = np.flatnonzero(self._left > 0)
        self._left[held] -= 1
        if len(held) == 0:
            return actions
        actions = actions.copy()
        actions[held] = self._held[held].reshape(-1, *actions.shape[1:])
        return actions

    def observe(self, dones: np.ndarray) -> None:
        """
        End the bursts of episodes that ended.

        :param dones: ``(n_envs,)``
        """
        self._is_first[:] = dones
        self._left[self._is_first] = 0


@dataclass
class HeldNoise(Exploration):
    """
    The noise ``ε`` of the Gaussian's draws ``μ + σ ε`` is the same for several steps. How many is drawn from a zeta law,
    ``P(n) ∝ n^-exponent`` for ``n`` up to ``longest``, by each environment alone; an episode ends it (FlashSAC, arXiv
    2604.04539; coloured noise as in Eberhard et al. 2023).

    With ``refiner="none"`` that is the action's noise. A refiner starts from such draws: with ``n_particles=1`` the start is
    held, and the chain adds noise that is not. With more, all proposals of the Gaussian are held, which of them is taken is
    drawn anew in each step, and little of it is left in the action.

    :param longest: most steps with the same noise
    :param exponent: of the zeta law, above 0
    :raises ValueError: if a number is out of range
    :raises TypeError: if one is not a number, or ``longest`` no integer
    """

    longest: int = 16
    exponent: float = 2.0

    def __post_init__(self) -> None:
        plain_fields(self)
        check_integer("longest", self.longest, minimum=2)
        check_number("exponent", self.exponent, strict=True)
        weights = np.arange(1.0, self.longest + 1.0) ** -self.exponent
        self._law = weights / weights.sum()
        self.begin(1, 1)

    def begin(self, n_envs: int, n_actions: int) -> None:
        """
        Forget all noise.

        :param n_envs: number of environments
        :param n_actions: ``A``
        """
        self._left = np.zeros(n_envs, dtype=np.int64)
        self._is_new = np.ones(n_envs, dtype=bool)
        self._held: th.Tensor | None = None

    def check(self, policy: RefinedPolicy, refines: bool) -> None:
        """
        Check that the policy draws from its Gaussian.

        :param policy: which draws the actions
        :param refines: whether the actions that collect experience are refined
        :raises ValueError: if it does not
        """
        if policy.actor.use_sde:
            raise ValueError("exploration='held_noise' needs use_sde=False, whose noise is held by itself, got True")
        if refines and policy.refinement.initial_particles == "uniform":
            raise ValueError("exploration='held_noise' needs proposals of the Gaussian, got initial_particles='uniform'")

    @contextmanager
    def acting(self, policy: RefinedPolicy) -> Iterator[None]:
        """
        Let the policy draw with the noise that is held.

        :param policy: which draws the actions
        :return: context of one environment step
        """
        self._is_new |= self._left == 0
        ends = np.flatnonzero(self._left == 0)
        self._left[ends] = np.random.choice(np.arange(1, self.longest + 1), len(ends), p=self._law)
        self._left -= 1
        policy.noise = self._noise
        try:
            yield
        finally:
            del policy.noise

    def _noise(self, like: th.Tensor) -> th.Tensor:
        """``(n_envs, n, A)``, the first time in a step new where it is not held any more."""
        if self._held is None or self._held.shape != like.shape:
            self._held = th.randn(like.shape, device=like.device, dtype=like.dtype)
        else:
            rows = th.as_tensor(np.flatnonzero(self._is_new), device=like.device)
            self._held = self._held.to(like).index_copy(
                0, rows, th.randn((len(rows), *like.shape[1:]), device=like.device, dtype=like.dtype)
            )
        self._is_new[:] = False
        return self._held

    def observe(self, dones: np.ndarray) -> None:
        """
        End what is held in episodes that ended.

        :param dones: ``(n_envs,)``
        """
        self._left[dones.astype(bool)] = 0


EXPLORATIONS: dict[str, type[Exploration]] = {"none": Exploration, "held_actions": HeldActions, "held_noise": HeldNoise}
"""Names of explorations."""


def choose_exploration(exploration: str | type[Exploration], kwargs: dict[str, Any] | None) -> Exploration:
    """
    Make what the arguments name.

    :param exploration: a name in :data:`EXPLORATIONS`, or a class
    :param kwargs: its keyword arguments
    :return: the exploration
    :raises ValueError: if there is no such name, a number is out of range, or arguments are given to ``"none"``
    :raises TypeError: if it is neither name nor class, or takes other arguments
    """
    if isinstance(exploration, str) and exploration == "none" and isinstance(kwargs, dict) and kwargs:
        raise ValueError(f"exploration_kwargs needs an exploration, such as 'held_actions', got {kwargs!r} with 'none'")
    found = resolve(EXPLORATIONS, exploration, kwargs, "exploration")
    if not isinstance(found, Exploration):
        raise TypeError(f"exploration must be one of {sorted(EXPLORATIONS)} or a subclass of Exploration, got {exploration!r}")
    return found
