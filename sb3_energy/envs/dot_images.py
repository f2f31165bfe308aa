"""Coordinate regression: where in an image a dot is, learned from few labels."""

from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from sb3_energy.checks import check_integer, check_number, plain_fields
from sb3_energy.envs.functions import inside_hull


@dataclass(frozen=True)
class DotImages:
    """
    Images of one dot, whose coordinates are the action: easy to state, and hard for a convolutional network that ends in dense
    layers (Liu et al. 2018). With few labels, most of the plane is outside of their hull (Florence et al. 2021, section 3).

    :param size: pixels of a side, at least 8
    :param dot_std: width of the dot in pixels, the standard deviation of a Gaussian, above 0
    :raises ValueError: if a number is out of range
    :raises TypeError: if something is not a number
    """

    size: int = 64
    dot_std: float = 1.5

    def __post_init__(self) -> None:
        plain_fields(self)
        check_integer("size", self.size, minimum=8, maximum=1024)
        check_number("dot_std", self.dot_std, strict=True)

    @property
    def observation_space(self) -> spaces.Box:
        """Of one grey image, channel first: ``(1, size, size)``."""
        return spaces.Box(0, 255, (1, self.size, self.size), np.uint8)

    @property
    def action_space(self) -> spaces.Box:
        """Of coordinates: to the right and downward, from -1 at the first pixel's centre to 1 at the last one's."""
        return spaces.Box(-1.0, 1.0, (2,), np.float32)

    def images(self, coordinates: np.ndarray) -> np.ndarray:
        """
        Draw dots.

        :param coordinates: ``(n, 2)`` in [-1, 1]
        :return: ``(n, 1, size, size)``, black but for the dot
        :raises ValueError: if coordinates have another shape or lie outside
        """
        coordinates = np.asarray(coordinates, dtype=np.float64)
        if coordinates.ndim != 2 or coordinates.shape[1] != 2 or not (np.abs(coordinates) <= 1.0).all():
            raise ValueError(f"coordinates must be (n, 2) in [-1, 1], got {coordinates.shape}: {coordinates!r}")
        centres = 0.5 * (coordinates + 1.0) * (self.size - 1)
        profiles = np.exp(-0.5 * np.square((np.arange(self.size) - centres[..., None]) / self.dot_std))
        return np.rint(255.0 * profiles[:, 1, :, None] * profiles[:, 0, None, :]).astype(np.uint8)[:, None]

    def draw(self, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Draw examples, coordinates uniform in the square.

        :param n: how many
        :param seed: of the random numbers
        :return: images ``(n, 1, size, size)`` and coordinates ``(n, 2)``
        :raises ValueError: if a number is out of range
        :raises TypeError: if a number is not an integer
        """
        rng = np.random.default_rng(check_integer("seed", seed, minimum=0))
        coordinates = (2.0 * rng.random((check_integer("n", n, minimum=1), 2)) - 1.0).astype(np.float32)
        return self.images(coordinates), coordinates

    def in_pixels(self, errors: np.ndarray) -> np.ndarray:
        """
        Convert distances of coordinates to pixels.

        :param errors: any shape
        :return: the same shape
        """
        return 0.5 * (self.size - 1) * np.asarray(errors)


def split_by_hull(coordinates: np.ndarray, labelled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Where test points lie: among the labels, or beyond them.

    :param coordinates: ``(n, 2)`` of tests
    :param labelled: ``(m, 2)`` that were learned from
    :return: indices of those inside of the labels' convex hull, and of those outside
    """
    inside = inside_hull(coordinates, labelled)
    return np.flatnonzero(inside), np.flatnonzero(~inside)
