"""
Functions as data sets: regressions whose right answers are known, where an energy and a mean differ.

A function that jumps and one with two values (Florence et al. 2021, section 3): ``x`` is the observation, ``y`` the action.
"""

from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from sb3_energy.checks import check_ends, check_finite_number, check_integer, check_number, check_unit_interval, plain_fields

BOX = spaces.Box(-1.0, 1.0, (1,), np.float32)


@dataclass(frozen=True)
class StepFunction:
    """
    ``y = low`` left of the jump and ``high`` from it on, plus Gaussian noise.

    :param values: the two values, ascending, in [-1, 1]
    :param jump: where it jumps, a number in (-1, 1)
    :param noise_std: standard deviation of the noise, at least 0; what it leads to is clipped to [-1, 1]
    :raises ValueError: if a number is out of range
    :raises TypeError: if something is not a number
    """

    values: tuple[float, float] = (-0.6, 0.6)
    jump: float = 0.0
    noise_std: float = 0.0

    observation_space = BOX
    action_space = BOX

    def __post_init__(self) -> None:
        plain_fields(self)
        object.__setattr__(self, "values", _checked_values(self.values))
        check_number("noise_std", self.noise_std)
        if not -1.0 < check_finite_number("jump", self.jump) < 1.0:
            raise ValueError(f"jump must lie in (-1, 1), got {self.jump!r}")

    def answer(self, x: np.ndarray) -> np.ndarray:
        """
        Evaluate the function, without noise.

        :param x: any shape
        :return: the same shape
        """
        return np.where(np.asarray(x) < self.jump, *self.values).astype(np.float32)

    def draw(self, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Draw examples, ``x`` uniform in [-1, 1].

        :param n: how many
        :param seed: of the random numbers
        :return: observations and actions, ``(n, 1)`` each
        :raises ValueError: if a number is out of range
        :raises TypeError: if a number is not an integer
        """
        rng, x = _uniform(n, seed)
        return x, _noisy(self.answer(x), self.noise_std, rng)


@dataclass(frozen=True)
class TwoValuedFunction:
    """
    ``y = ±(distance + curvature x²)``, one or the other by chance, plus Gaussian noise. Their mean lies between both, where no
    example is.

    :param distance: of each value from 0 at ``x = 0``, above 0
    :param curvature: by how much it is larger at the ends
    :param share: probability of the upper value
    :param noise_std: standard deviation of the noise, at least 0; what it leads to is clipped to [-1, 1]
    :raises ValueError: if a number is out of range, or a value outside of [-1, 1]
    :raises TypeError: if something is not a number
    """

    distance: float = 0.3
    curvature: float = 0.4
    share: float = 0.5
    noise_std: float = 0.0

    observation_space = BOX
    action_space = BOX

    def __post_init__(self) -> None:
        plain_fields(self)
        check_number("distance", self.distance, strict=True)
        for name in ("curvature", "noise_std"):
            check_number(name, getattr(self, name))
        check_unit_interval("share", self.share)
        if self.distance + self.curvature > 1.0:
            raise ValueError(
                f"distance + curvature must be at most 1, where actions end, got {self.distance!r} and {self.curvature!r}"
            )

    def answers(self, x: np.ndarray) -> np.ndarray:
        """
        Evaluate both values, without noise.

        :param x: ``(n, 1)``
        :return: ``(n, 2)``, the lower one first
        """
        upper = (self.distance + self.curvature * np.square(x)).astype(np.float32)
        return np.concatenate([-upper, upper], axis=1)

    def draw(self, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Draw examples, ``x`` uniform in [-1, 1].

        :param n: how many
        :param seed: of the random numbers
        :return: observations and actions, ``(n, 1)`` each
        :raises ValueError: if a number is out of range
        :raises TypeError: if a number is not an integer
        """
        rng, x = _uniform(n, seed)
        is_upper = rng.random(len(x)) < self.share
        y = self.answers(x)[np.arange(len(x)), is_upper.astype(int)][:, None]
        return x, _noisy(y, self.noise_std, rng)


def inside_hull(points: np.ndarray, of: np.ndarray) -> np.ndarray:
    """
    Find the points inside of the convex hull of others, where a model interpolates; outside of it, it extrapolates.

    :param points: ``(n, D)`` with ``D`` 1 or 2
    :param of: ``(m, D)``, whose hull it is
    :return: ``(n,)``; on the edge counts as inside
    :raises ValueError: if the shapes do not fit together
    """
    points, of = np.asarray(points, dtype=np.float64), np.asarray(of, dtype=np.float64)
    if points.ndim != 2 or of.ndim != 2 or points.shape[1] != of.shape[1] or of.shape[1] not in (1, 2) or len(of) == 0:
        raise ValueError(
            f"points and of must be (n, D) and (m, D) with D of 1 or 2 and m > 0, got {points.shape} and {of.shape}"
        )
    if of.shape[1] == 1:
        return ((points >= of.min()) & (points <= of.max())).all(axis=1)
    corners = hull_corners(of)
    if len(corners) < 3:  # a line or a point, beside which everything is outside
        corners = np.concatenate([corners, corners[:1]])
    sides = np.roll(corners, -1, axis=0) - corners
    ways = points[:, None] - corners
    left = sides[:, 0] * ways[..., 1] - sides[:, 1] * ways[..., 0]  # of each side, which run counter-clockwise
    in_bounds = ((points >= of.min(axis=0)) & (points <= of.max(axis=0))).all(axis=1)
    return (left >= 0.0).all(axis=1) & in_bounds


def hull_corners(points: np.ndarray) -> np.ndarray:
    """
    The corners of the convex hull of points in a plane (the monotone chain of Andrew 1979).

    :param points: ``(n, 2)``
    :return: ``(m, 2)``, counter-clockwise
    """
    ordered = np.unique(np.asarray(points, dtype=np.float64), axis=0)
    if len(ordered) < 3:
        return ordered
    return np.concatenate([_chain(ordered)[:-1], _chain(ordered[::-1])[:-1]])


def _chain(ordered: np.ndarray) -> np.ndarray:
    kept: list[np.ndarray] = []
    for point in ordered:
        while len(kept) > 1:
            side, way = kept[-1] - kept[-2], point - kept[-2]
            if side[0] * way[1] - side[1] * way[0] > 0.0:
                break
            kept.pop()
        kept.append(point)
    return np.stack(kept)


def _checked_values(values: tuple[float, float]) -> tuple[float, float]:
    low, high = check_ends("values", values, "the lower one first")
    if not -1.0 <= low < high <= 1.0:
        raise ValueError(f"values must lie in [-1, 1], got {values!r}")
    return low, high


def _uniform(n: int, seed: int) -> tuple[np.random.Generator, np.ndarray]:
    rng = np.random.default_rng(check_integer("seed", seed, minimum=0))
    return rng, (2.0 * rng.random((check_integer("n", n, minimum=1), 1)) - 1.0).astype(np.float32)


def _noisy(y: np.ndarray, noise_std: float, rng: np.random.Generator) -> np.ndarray:
    return np.clip(y + noise_std * rng.standard_normal(y.shape), -1.0, 1.0).astype(np.float32)
