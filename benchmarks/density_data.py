"""Four densities of the plane that are hard for one Gaussian, each with what is known of it: its modes and where it lives.

Standardised: mean 0, and the variances of the coordinates add up to 2, by formulas and not by a sample.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Density:
    """
    :param name: for tables and files
    :param title: for pictures
    :param draw: ``n, rng -> (n, 2)``
    :param mode_of: ``(n, 2) -> (n,)``: the index of the mode on whose support a point lies, -1 for none
    :param n_modes: all of them equally likely
    """

    name: str
    title: str
    draw: Callable[[int, np.random.Generator], np.ndarray]
    mode_of: Callable[[np.ndarray], np.ndarray]
    n_modes: int


RADIUS, WIDTH = 4.0, 0.5
_EIGHT_SCALE = math.sqrt(RADIUS**2 / 2.0 + WIDTH**2)
_EIGHT_ANGLES = np.arange(8) * np.pi / 4.0
CENTRES = RADIUS * np.stack([np.cos(_EIGHT_ANGLES), np.sin(_EIGHT_ANGLES)], axis=-1)


def eight_gaussians(n: int, rng: np.random.Generator) -> np.ndarray:
    """
    :param n: how many
    :param rng: source of the samples
    :return: ``(n, 2)``: eight equal Gaussians on a circle (Grathwohl et al. 2019, section 4.1)
    """
    return (CENTRES[rng.integers(8, size=n)] + WIDTH * rng.standard_normal((n, 2))) / _EIGHT_SCALE


def gaussian_of(points: np.ndarray) -> np.ndarray:
    """
    :param points: ``(n, 2)``
    :return: the Gaussian whose centre is within three standard deviations, -1 where none is
    """
    distances = np.linalg.norm(points[:, None] * _EIGHT_SCALE - CENTRES, axis=-1)
    return np.where(distances.min(axis=1) < 3.0 * WIDTH, distances.argmin(axis=1), -1)


MOON_NOISE = 0.1
_MOON_CENTRE = np.array([0.5, 0.25])
# E cos² + 1/4 and E sin² - E sin / 2 + 1/16 over half a circle
_MOON_SCALE = math.sqrt((0.75 + 0.5625 - 1.0 / np.pi) / 2.0 + MOON_NOISE**2)


def two_moons(n: int, rng: np.random.Generator) -> np.ndarray:
    """
    :param n: how many
    :param rng: source of the samples
    :return: ``(n, 2)``: two half circles that reach into each other, as scikit-learn's ``make_moons`` has them
    """
    angles, lower = np.pi * rng.random(n), rng.integers(2, size=n) == 1
    arcs = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    arcs = np.where(lower[:, None], np.array([1.0, 0.5]) - arcs, arcs)
    return (arcs + MOON_NOISE * rng.standard_normal((n, 2)) - _MOON_CENTRE) / _MOON_SCALE


def moon_of(points: np.ndarray) -> np.ndarray:
    """
    :param points: ``(n, 2)``
    :return: the moon whose arc is within three standard deviations of the noise, -1 where none is
    """
    raw = points * _MOON_SCALE + _MOON_CENTRE
    distances = np.stack([_to_arc(raw), _to_arc(np.array([1.0, 0.5]) - raw)], axis=-1)
    return np.where(distances.min(axis=1) < 3.0 * MOON_NOISE, distances.argmin(axis=1), -1)


def _to_arc(points: np.ndarray) -> np.ndarray:
    """Distance to the upper half of the unit circle: to the circle above the axis, to the nearer end below it."""
    above = np.abs(np.linalg.norm(points, axis=-1) - 1.0)
    below = np.hypot(np.abs(points[:, 0]) - 1.0, points[:, 1])
    return np.where(points[:, 1] >= 0.0, above, below)


_BOARD_SCALE = math.sqrt(4.0 / 3.0)
DARK = np.array([(i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0])


def checkerboard(n: int, rng: np.random.Generator) -> np.ndarray:
    """
    :param n: how many
    :param rng: source of the samples
    :return: ``(n, 2)``: uniform on the eight dark squares of a board of four by four
    """
    return (DARK[rng.integers(len(DARK), size=n)] + rng.random((n, 2)) - 2.0) / _BOARD_SCALE


def square_of(points: np.ndarray) -> np.ndarray:
    """
    :param points: ``(n, 2)``
    :return: the dark square under a point, -1 where there is none
    """
    cells = np.floor(points * _BOARD_SCALE + 2.0).astype(int)
    hits = (cells[:, None] == DARK).all(axis=-1)
    return np.where(hits.any(axis=1), hits.argmax(axis=1), -1)


N_ARMS, RADIAL, TANGENTIAL, RATE = 5, 0.3, 0.1, 0.25
_ARM_ANGLES = 2.0 * np.pi * np.arange(N_ARMS) / N_ARMS
_PINWHEEL_SCALE = math.sqrt((1.0 + RADIAL**2 + TANGENTIAL**2) / 2.0)


def pinwheel(n: int, rng: np.random.Generator) -> np.ndarray:
    """
    :param n: how many
    :param rng: source of the samples
    :return: ``(n, 2)``: five Gaussian arms, turned the further the further out (Johnson et al. 2016, section 2.1)
    """
    along = 1.0 + RADIAL * rng.standard_normal(n)
    across = TANGENTIAL * rng.standard_normal(n)
    turns = _ARM_ANGLES[rng.integers(N_ARMS, size=n)] + RATE * np.exp(along)
    points = np.stack([along * np.cos(turns) - across * np.sin(turns), along * np.sin(turns) + across * np.cos(turns)], -1)
    return points / _PINWHEEL_SCALE


def arm_of(points: np.ndarray) -> np.ndarray:
    """
    :param points: ``(n, 2)``
    :return: the arm whose Gaussian has the point within three standard deviations once it is turned back, -1 where none has
    """
    raw = points * _PINWHEEL_SCALE
    radius, angle = np.linalg.norm(raw, axis=-1)[:, None], np.arctan2(raw[:, 1], raw[:, 0])[:, None]
    turned = np.zeros((len(points), N_ARMS))  # the angle before the turn, which depends on how far along the arm it is
    for _ in range(60):  # on the support the turn changes by less than half of what the angle does
        turned = angle - _ARM_ANGLES - RATE * np.exp(radius * np.cos(turned))
        turned = (turned + np.pi) % (2.0 * np.pi) - np.pi
    distances = np.hypot((radius * np.cos(turned) - 1.0) / RADIAL, radius * np.sin(turned) / TANGENTIAL)
    return np.where(distances.min(axis=1) < 3.0, distances.argmin(axis=1), -1)


DENSITIES = {
    density.name: density
    for density in (
        Density("eight_gaussians", "8 Gaussians", eight_gaussians, gaussian_of, 8),
        Density("two_moons", "two moons", two_moons, moon_of, 2),
        Density("checkerboard", "checkerboard", checkerboard, square_of, len(DARK)),
        Density("pinwheel", "pinwheel", pinwheel, arm_of, N_ARMS),
    )
}
