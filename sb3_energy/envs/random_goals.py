"""Worlds that are drawn at random: nobody has tuned an algorithm, a temperature or a reward scale to them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_energy.checks import check_integer
from sb3_energy.envs.goals_env import GoalsEnv
from sb3_energy.envs.world import World

FEWEST_GOALS, MOST_GOALS = 2, 6
LEAST_ANGLE = np.deg2rad(50.0)
"""Between two goals, seen from the origin, so that their modes of the first action are apart."""
DISTANCES = (3.5, 6.0)
"""Range of a goal's distance from the origin."""
NEAR_BONUS = 15.0
"""Bonus of the nearest goal, without its random part."""
DIFFERENCE = 14.0
"""Width of the bonuses' random part, around 0."""
DISCOUNT = 0.99
"""Discount at which bonuses make up for distances: the algorithms' default."""
SCALE_EXPONENTS = (-2.0, 2.0)
"""Range of the reward scale's decimal logarithm."""


def draw_world(seed: int) -> World:
    """
    Draw a world: 2 to 6 goals at unequal distances and angles, whose bonuses make up for their distances up to a random
    part in [-7, 7], and a reward scale ``10^u`` with ``u`` uniform in [-2, 2].

    Only ``Generator.random`` is called, and all numbers are rounded, so that a world stays what it is with other versions of
    NumPy and on other machines.

    :param seed: an integer of at least 0
    :return: the world
    :raises ValueError: if the seed is negative
    :raises TypeError: if it is not an integer
    """
    rng = np.random.default_rng(check_integer("world", seed, minimum=0))
    n_goals = FEWEST_GOALS + int((MOST_GOALS - FEWEST_GOALS + 1) * rng.random())
    first_angle = 2.0 * np.pi * rng.random()
    # uniform on the simplex: the angles between neighbours, above the least
    parts = np.diff(np.sort(rng.random(n_goals - 1)), prepend=0.0, append=1.0)
    gaps = LEAST_ANGLE + (2.0 * np.pi - n_goals * LEAST_ANGLE) * parts
    angles = first_angle + np.cumsum(gaps)
    distances = _uniform(DISTANCES, rng.random(n_goals))
    reward_scale = 10.0 ** _uniform(SCALE_EXPONENTS, rng.random())
    goals = np.round(distances[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1), 2)
    differences = _uniform((-DIFFERENCE / 2.0, DIFFERENCE / 2.0), rng.random(n_goals))
    bonuses = compensating_bonuses(goals) + differences
    return World(
        tuple((x, y) for x, y in goals.tolist()),
        tuple(np.round(bonuses, 1).tolist()),
        float(f"{reward_scale:.3g}"),
    )


def compensating_bonuses(goals: np.ndarray) -> np.ndarray:
    """
    Bonuses that make goals about equally good, whatever their distances from the origin.

    Of one goal, without bounds, discount and noise, the best path goes ``1 / 6`` of what is left at each step: with the cost
    ``P d^2`` of a distance ``d``, Riccati's equation of an action cost 30 and a state cost 1 is ``P = 30 (1 + P) / (31 + P)``,
    so ``P = 5``, and the step is ``(1 + P) / (31 + P)``. Along that path costs are those of the whole world, discounted.

    :param goals: ``(G, 2)``
    :return: ``(G,)`` of which that of the nearest goal is :data:`NEAR_BONUS`
    """
    world = World(goals, np.zeros(len(goals)))  # type: ignore[arg-type]  # World makes tuples of them
    costs, discounts = np.zeros(len(goals)), np.ones(len(goals))
    states, running, discount = np.zeros_like(goals), np.ones(len(goals), dtype=bool), 1.0
    while running.any():
        states, rewards, _ = world.step(states, (goals - states) / 6.0)
        costs -= running * discount * rewards
        discounts[running] = discount
        # on the way to a far goal the disc of another does not count
        running = running & (np.linalg.norm(goals - states, axis=1) >= world.goal_threshold)
        discount *= DISCOUNT
    nearest = np.square(goals).sum(axis=1).argmin()
    return (costs - costs[nearest] + discounts[nearest] * NEAR_BONUS) / discounts


def _uniform(interval: tuple[float, float], parts: Any) -> Any:
    low, high = interval
    return low + (high - low) * parts


class RandomGoalsEnv(GoalsEnv):
    """
    A world drawn at random, or one of your own, with the dynamics and rewards of the four goals;
    ``gym.make("RandomGoals-v0", world=3)`` adds the horizon of 30 steps. Its exact answers are in
    :mod:`sb3_energy.envs.exact_answers`.

    ``info`` says after each step which goal was reached (``"goal"``, -1 for none) and whether one was (``"is_success"``).

    :param world: seed of the world, an integer of at least 0 (default: 0); the world itself is in the attribute ``world``
    :param reward_scale: factor of every reward, in place of the drawn one (of your own goals: 1)
    :param goals: ``(G, 2)`` goals of your own, in place of drawn ones; needs ``bonuses``
    :param bonuses: ``(G,)`` what reaching each of them adds to the reward
    :param goal_threshold: distance below which a goal counts as reached
    :param start_std: standard deviation of the start around the origin; 0 starts at the origin itself
    :param render_mode: ``None`` or ``"rgb_array"``
    :raises ValueError: if an argument lies outside its range, or a world's seed is given beside goals of your own
    :raises TypeError: if a number is not a number
    """

    def __init__(
        self,
        world: int | None = None,
        reward_scale: float | None = None,
        goals: Sequence[Sequence[float]] | np.ndarray | None = None,
        bonuses: Sequence[float] | np.ndarray | None = None,
        goal_threshold: float = 0.5,
        start_std: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        if (goals is None) != (bonuses is None):
            raise ValueError(f"goals and bonuses must be given together, got goals={goals!r}, bonuses={bonuses!r}")
        if goals is not None and world is not None:
            raise ValueError(f"world must be None beside goals of your own, got {world!r}")
        if goals is None:
            base = draw_world(0 if world is None else world)
        else:
            base = World(goals, bonuses)  # type: ignore[arg-type]  # World makes tuples of them
        scale = base.reward_scale if reward_scale is None else reward_scale
        super().__init__(World(base.goals, base.bonuses, scale, goal_threshold), start_std, render_mode)
