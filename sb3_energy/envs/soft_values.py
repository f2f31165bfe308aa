"""The known answer of a world of goals: soft values on a grid, by soft value iteration. The four goals are the default."""

from dataclasses import dataclass

import numpy as np

from sb3_energy.checks import check_choice
from sb3_energy.envs.multi_goal import four_goals
from sb3_energy.envs.world import LIMIT, World

QUADRATURES = ("trapezoid", "rectangle")
"""``rectangle`` gives the grid's border full weight: values come out slightly high where the policy is broad."""


@dataclass(frozen=True)
class SoftValues:
    """
    Soft values ``V(s) = alpha log integral exp(Q(s, a) / alpha) da`` on a grid of states.

    :param alpha: temperature, SAC's entropy coefficient
    :param gamma: discount
    :param goal_threshold: distance below which a goal counts as reached
    :param n_actions: points of an axis of the grid of actions
    :param quadrature: rule of the integral over actions
    :param values: ``(S, S)`` values, first index along the first coordinate
    :param n_iterations: sweeps that were made
    :param world: whose values these are; ``None`` stands for the four goals with this threshold, and becomes them
    :raises ValueError: if world and ``goal_threshold`` disagree
    """

    alpha: float
    gamma: float
    goal_threshold: float
    n_actions: int
    quadrature: str
    values: np.ndarray
    n_iterations: int
    world: World = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.world is None:
            object.__setattr__(self, "world", four_goals(self.goal_threshold))
        if self.world.goal_threshold != self.goal_threshold:
            raise ValueError(f"goal_threshold must be the world's, {self.world.goal_threshold:g}, got {self.goal_threshold!r}")

    def value(self, states: np.ndarray) -> np.ndarray:
        """
        Interpolate the soft state value.

        :param states: ``(..., 2)``
        :return: ``(...)`` values, bilinear between the grid's points
        """
        cells = len(self.values) - 1
        position = (np.clip(states, -LIMIT, LIMIT) + LIMIT) / (2.0 * LIMIT) * cells
        corner = np.minimum(position.astype(int), cells - 1)
        (x, y), (fx, fy) = np.moveaxis(corner, -1, 0), np.moveaxis(position - corner, -1, 0)
        low = (1.0 - fx) * self.values[x, y] + fx * self.values[x + 1, y]
        high = (1.0 - fx) * self.values[x, y + 1] + fx * self.values[x + 1, y + 1]
        return (1.0 - fy) * low + fy * high

    def q_value(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """
        Evaluate the soft Q-function by one Bellman backup.

        :param states: ``(..., 2)``
        :param actions: ``(..., 2)``; broadcasts against the states
        :return: ``(...)`` soft Q-values: reward plus the discounted value of where the action leads
        """
        next_states, rewards, goals = self.world.step(states, actions)
        return rewards + self.gamma * (goals < 0) * self.value(next_states)

    def density(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        The optimal policy ``exp(Q / alpha)`` of one state (Haarnoja et al. 2017, theorem 1).

        :param state: ``(2,)``
        :return: the grid's actions ``(A, A, 2)`` and their probability masses ``(A, A)``, of sum 1
        """
        actions, weights = action_grid(self.n_actions, self.quadrature)
        logits = self.q_value(state, actions) / self.alpha
        masses = np.exp(logits - logits.max()) * weights
        return actions, masses / masses.sum()

    def entropy(self, state: np.ndarray) -> float:
        """
        Compute the entropy of the optimal policy by quadrature.

        :param state: ``(2,)``
        :return: differential entropy of the optimal policy of one state, in nats
        """
        _, weights = action_grid(self.n_actions, self.quadrature)
        _, masses = self.density(state)
        visited = masses > 0.0
        return float(-(masses[visited] * np.log(masses[visited] / weights[visited])).sum())


def action_grid(n_actions: int, quadrature: str = "trapezoid") -> tuple[np.ndarray, np.ndarray]:
    """
    Build a regular grid of actions with quadrature weights.

    :param n_actions: points of an axis
    :param quadrature: one of ``QUADRATURES``
    :return: actions ``(n, n, 2)`` and their weights ``(n, n)`` in an integral over ``[-1, 1]^2``
    :raises ValueError: if there is no such rule or there are fewer than two points
    """
    check_choice("quadrature", quadrature, QUADRATURES)
    if n_actions < 2:
        raise ValueError(f"n_actions must be at least 2, got {n_actions!r}")
    axis = np.linspace(-1.0, 1.0, n_actions)
    weight = np.full(n_actions, 2.0 / (n_actions - 1))
    if quadrature == "trapezoid":
        weight[[0, -1]] /= 2.0
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1), weight[:, None] * weight


def soft_value_iteration(
    alpha: float,
    n_states: int = 113,
    n_actions: int = 41,
    gamma: float = 0.99,
    goal_threshold: float | None = None,
    quadrature: str = "trapezoid",
    tolerance: float = 1e-3,
    max_iterations: int = 500,
    world: World | None = None,
) -> SoftValues:
    """
    Iterate ``V <- alpha log integral exp((r + gamma V') / alpha) da`` to its fixed point.
    Soft value iteration (Haarnoja et al. 2017, equations 4 and 5, theorem 3).

    :param alpha: temperature, above 0
    :param n_states: points of an axis of the grid of states
    :param n_actions: points of an axis of the grid of actions
    :param gamma: discount, in [0, 1)
    :param goal_threshold: of the four goals, distance below which one counts as reached (default: 0.5); another world has
        its own
    :param quadrature: rule of the integral over actions, one of ``QUADRATURES``
    :param tolerance: stop once no value changes by more, in units of the world's reward scale
    :param max_iterations: give up after so many sweeps
    :param world: whose values are wanted (default: the four goals)
    :return: the values
    :raises ValueError: if an argument lies outside its range
    :raises RuntimeError: if the values still change after ``max_iterations``
    """
    if not alpha > 0.0 or not 0.0 <= gamma < 1.0:
        raise ValueError(f"alpha must be above 0 and gamma in [0, 1), got alpha={alpha!r}, gamma={gamma!r}")
    if n_states < 2:
        raise ValueError(f"n_states must be at least 2, got {n_states!r}")
    if world is not None and goal_threshold is not None:
        raise ValueError(f"goal_threshold belongs to the four goals, got {goal_threshold!r} beside a world, which has its own")
    if world is None:
        world = four_goals(0.5 if goal_threshold is None else goal_threshold)
    sweep = _Sweep(alpha, gamma, world, n_states, action_grid(n_actions, quadrature))
    values = np.zeros((n_states, n_states))
    for iteration in range(1, max_iterations + 1):
        previous, values = values, sweep(values)
        if np.abs(values - previous).max() < tolerance * world.reward_scale:
            return SoftValues(alpha, gamma, world.goal_threshold, n_actions, quadrature, values, iteration, world)
    raise RuntimeError(f"soft value iteration did not converge to {tolerance:g} in {max_iterations} sweeps")


class _Sweep:
    """One backup of all states. An action is a translation, so a bilinear look-up is two shifts along the axes."""

    def __init__(self, alpha: float, gamma: float, world: World, n_states: int, grid: tuple[np.ndarray, np.ndarray]) -> None:
        actions, weights = grid
        self.alpha, self.gamma = alpha, gamma
        self.axis = np.linspace(-LIMIT, LIMIT, n_states)
        self.log_weights = np.log(weights)
        self.shifts = np.stack([self._shift(shift) for shift in actions[:, 0, 0]])
        # what does not change from sweep to sweep; (A, A, S, S), the largest arrays by far, hence single precision
        states = np.stack(np.meshgrid(self.axis, self.axis, indexing="ij"), axis=-1)
        self.rewards = np.empty((*weights.shape, n_states, n_states), dtype=np.float32)
        self.alive = np.empty(self.rewards.shape, dtype=bool)
        for index in np.ndindex(weights.shape):
            _, self.rewards[index], goals = world.step(states, actions[index])
            self.alive[index] = goals < 0

    def _shift(self, shift: float) -> np.ndarray:
        """``(n, n)`` matrix of the linear interpolation of a function of the axis at ``clip(axis + shift)``."""
        columns = np.eye(len(self.axis))
        points = np.clip(self.axis + shift, -LIMIT, LIMIT)
        return np.stack([np.interp(points, self.axis, column) for column in columns], axis=1)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        total = np.full_like(values, -np.inf)
        for i, shift in enumerate(self.shifts):
            moved = self.gamma * ((shift @ values) @ np.swapaxes(self.shifts, 1, 2))
            logits = (self.rewards[i] + self.alive[i] * moved) / self.alpha + self.log_weights[i][:, None, None]
            total = np.logaddexp(total, _logsumexp(logits))
        return self.alpha * total


def _logsumexp(logits: np.ndarray) -> np.ndarray:
    highest = logits.max(axis=0)
    return highest + np.log(np.exp(logits - highest).sum(axis=0))
