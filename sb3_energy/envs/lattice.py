"""
Soft values and shares of goals on a lattice that actions map to itself.

Where states and actions have the same spacing, ``s + a`` is a point of the lattice and nothing is interpolated. The Q-function
is the action's cost plus a function of the next state, ``Q(s, a) = -30 |a|^2 + G(s + a)``, so the integral over actions is a
convolution whose kernel is a product of one of each axis: two passes along the axes in place of a sum over all actions.

A goal's edge is the only jump. A point near it counts in part, as if its cell were cut by a straight edge; the error of the
integral is then of second order in the spacing.
"""

import numpy as np

from sb3_energy.checks import check_integer, check_number
from sb3_energy.envs.soft_values import SoftValues
from sb3_energy.envs.world import ACTION_COST, HORIZON, LIMIT, World

QUADRATURE = "trapezoid"


class Lattice:
    """
    What of a world does not change with its values. Arrays are ``(S, S)``, first index along the first coordinate, and
    logarithms of masses are in units of the temperature.

    :param world: goals and rewards
    :param alpha: temperature
    :param gamma: discount
    :param n_actions: points of an axis of the actions, odd, so that the origin is a point; the states have
        ``7 (n_actions - 1) + 1``
    """

    def __init__(self, world: World, alpha: float, gamma: float, n_actions: int) -> None:
        self.alpha, self.gamma, self.reach = alpha, gamma, (n_actions - 1) // 2
        spacing = 2.0 / (n_actions - 1)
        axis = np.linspace(-LIMIT, LIMIT, round(2.0 * LIMIT / spacing) + 1)
        self.nearest, squared_distance = world.nearest(np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1))
        inside = np.clip((world.goal_threshold - np.sqrt(squared_distance)) / spacing + 0.5, 0.0, 1.0)
        bonus = np.array(world.bonuses)[self.nearest]
        scale = world.reward_scale / alpha
        with np.errstate(divide="ignore"):  # log 0 = -inf: such a cell has no such part
            self.log_outside = np.log1p(-inside) - scale * squared_distance
            self.log_ended = np.log(inside) + scale * (bonus - squared_distance)
        actions = np.linspace(-1.0, 1.0, n_actions)
        weights = np.full(n_actions, spacing)
        weights[[0, -1]] /= 2.0
        self.kernel = np.log(weights) - scale * ACTION_COST * np.square(actions)

    def going_on(self, values: np.ndarray) -> np.ndarray:
        """
        Value going on from a point.

        :param values: soft values
        :return: ``G / alpha`` of the part of each cell where no goal is reached
        """
        return self.log_outside + self.gamma / self.alpha * values

    def backup(self, values: np.ndarray) -> np.ndarray:
        """
        Make one sweep of soft value iteration.

        :param values: soft values
        :return: the soft values one step earlier
        """
        total = np.logaddexp(self.log_ended, self.going_on(values))
        for axis in range(2):
            # clip(s + a): beyond the wall is what is at the wall
            total = self._convolved(np.pad(total, _pad(axis, self.reach), mode="edge"), axis)
        return self.alpha * total

    def move(self, log_masses: np.ndarray) -> np.ndarray:
        """
        Let masses move by the actions' weights alone; the adjoint of the convolutions in :meth:`backup`.

        :param log_masses: of where the moves begin
        :return: those of where they end
        """
        for axis in range(2):
            padded = np.pad(log_masses, _pad(axis, 2 * self.reach), constant_values=-np.inf)
            spread = np.moveaxis(self._convolved(padded, axis), axis, 0)
            edge = self.reach + 1  # what went beyond the wall stands at the wall
            low, high = np.logaddexp.reduce(spread[:edge], axis=0), np.logaddexp.reduce(spread[-edge:], axis=0)
            log_masses = np.moveaxis(np.concatenate([low[None], spread[edge:-edge], high[None]]), 0, axis)
        return log_masses

    def _convolved(self, logits: np.ndarray, axis: int) -> np.ndarray:
        """Logarithm of the convolution of ``exp(logits)`` with the kernel, which is symmetric; ``2 reach`` points shorter."""
        logits = np.ascontiguousarray(np.moveaxis(logits, axis, 0))
        windows = [logits[i : len(logits) - 2 * self.reach + i] for i in range(len(self.kernel))]
        highest = np.full_like(windows[0], -np.inf)
        for window, weight in zip(windows, self.kernel, strict=True):
            np.maximum(highest, window + weight, out=highest)
        shift = np.where(np.isneginf(highest), 0.0, highest)
        # differences to the highest are small: their exponentials in single precision are right to seven digits, and fast
        term, total = np.empty(highest.shape, dtype=np.float32), np.zeros(highest.shape, dtype=np.float32)
        for window, weight in zip(windows, self.kernel, strict=True):
            np.subtract(window, shift - weight, out=term, casting="same_kind")
            total += np.exp(term, out=term)
        with np.errstate(divide="ignore"):
            return np.moveaxis(shift + np.log(total), 0, axis)


def _pad(axis: int, width: int) -> list[tuple[int, int]]:
    return [(width, width) if other == axis else (0, 0) for other in range(2)]


def lattice_values(
    world: World, alpha: float, n_actions: int = 31, gamma: float = 0.99, tolerance: float = 1e-3, max_iterations: int = 2000
) -> SoftValues:
    """
    Soft values by soft value iteration on a lattice (Haarnoja et al. 2017, equations 4 and 5, theorem 3), in seconds.

    :param world: goals and rewards
    :param alpha: temperature in the world's rewards, above 0. The lattice has to resolve the policy: its spacing
        ``2 / (n_actions - 1)`` must be at most twice the standard deviation of an action, about ``sqrt(alpha / (72 scale))``
    :param n_actions: points of an axis of the actions, odd
    :param gamma: discount, in [0, 1)
    :param tolerance: stop once no value changes by more, in units of the world's reward scale
    :param max_iterations: give up after so many sweeps
    :return: the values
    :raises ValueError: if an argument lies outside its range
    :raises TypeError: if a number is not a number
    :raises RuntimeError: if the values still change after ``max_iterations``
    """
    alpha = float(check_number("alpha", alpha, strict=True))
    if not 0.0 <= gamma < 1.0:
        raise ValueError(f"gamma must lie in [0, 1), got {gamma!r}")
    if check_integer("n_actions", n_actions, minimum=3) % 2 == 0:
        raise ValueError(f"n_actions must be odd, so that the origin is a point of the lattice, got {n_actions!r}")
    deviation = np.sqrt(alpha / (72.0 * world.reward_scale))
    if 2.0 / (n_actions - 1) > 2.0 * deviation:
        raise ValueError(
            f"n_actions must be at least {2 * int(np.ceil(0.5 / deviation)) + 1} to resolve the policy at alpha={alpha:g} "
            f"in a world of reward scale {world.reward_scale:g}, got {n_actions!r}"
        )
    lattice = Lattice(world, alpha, gamma, n_actions)
    values = np.zeros_like(lattice.log_ended)
    for iteration in range(1, max_iterations + 1):
        previous, values = values, lattice.backup(values)
        if np.abs(values - previous).max() < tolerance * world.reward_scale:
            return SoftValues(alpha, gamma, world.goal_threshold, n_actions, QUADRATURE, values, iteration, world)
    raise RuntimeError(f"soft value iteration did not converge to {tolerance:g} in {max_iterations} sweeps")


def goal_shares(soft_values: SoftValues, horizon: int = HORIZON) -> np.ndarray:
    """
    Shares of goals among episodes of the optimal policy ``exp(Q / alpha)`` that start at the origin: its density is carried
    forward step by step, so they have no sampling error. The values know no horizon, as SAC's do not: it bootstraps where a
    time limit ends an episode.

    :param soft_values: of :func:`lattice_values`
    :param horizon: steps after which an episode is over
    :return: ``(G,)`` shares; what is missing to 1 reaches no goal
    :raises ValueError: if the values are on another grid
    """
    world, n_actions = soft_values.world, soft_values.n_actions
    if (
        soft_values.values.shape != (7 * (n_actions - 1) + 1,) * 2
        or n_actions % 2 == 0
        or soft_values.quadrature != QUADRATURE
    ):
        raise ValueError(
            f"soft_values must be those of lattice_values, got {len(soft_values.values)} points of an axis "
            f"with {n_actions} actions"
        )
    lattice = Lattice(world, soft_values.alpha, soft_values.gamma, n_actions)
    going_on = lattice.going_on(soft_values.values)
    # the policy's normalizer must be that of these very G, which the last sweep's values are not to the last digit
    log_normalizer = lattice.backup(soft_values.values) / soft_values.alpha
    log_masses = np.full_like(going_on, -np.inf)
    log_masses[len(log_masses) // 2, len(log_masses) // 2] = 0.0
    shares = np.zeros(world.n_goals)
    for _ in range(horizon):
        arriving = lattice.move(log_masses - log_normalizer)
        ended = np.exp(arriving + lattice.log_ended)
        shares += np.bincount(lattice.nearest.ravel(), ended.ravel(), minlength=world.n_goals)
        log_masses = arriving + going_on
        if log_masses.max() < np.log(1e-6 / log_masses.size):
            break
    return shares
