"""A picture of a square made of numpy alone, so that rendering needs no graphics library."""

import numpy as np

Colour = tuple[int, int, int]

_DARK = np.array((23, 32, 62), dtype=np.float64)
_LIGHT = np.array((126, 184, 202), dtype=np.float64)


class Canvas:
    """
    An image of ``[-limit, limit]^2`` with the second coordinate upward.

    :param limit: half the side of the square
    :param size: pixels of a side
    """

    def __init__(self, limit: float, size: int = 280) -> None:
        axis = (np.arange(size) + 0.5) / size * 2.0 * limit - limit
        self.points = np.stack(np.meshgrid(axis, axis[::-1]), axis=-1)
        """``(size, size, 2)``: the point of the square under each pixel."""
        self.image = np.zeros((size, size, 3), dtype=np.uint8)
        self._pixel = 2.0 * limit / size

    def fill(self, values: np.ndarray) -> None:
        """
        Fill the canvas with a greyscale background.

        :param values: ``(size, size)`` background, dark where low
        """
        span = max(float(np.ptp(values)), 1e-12)
        level = ((values - values.min()) / span)[..., None]
        self.image[:] = (_DARK + level * (_LIGHT - _DARK)).astype(np.uint8)

    def disc(self, centre: np.ndarray, radius: float, colour: Colour) -> None:
        """
        Draw a filled disc.

        :param centre: ``(2,)``
        :param radius: in units of the square
        :param colour: red, green, blue
        """
        self.image[np.square(self.points - centre).sum(-1) < radius**2] = colour

    def segment(self, start: np.ndarray, end: np.ndarray, colour: Colour) -> None:
        """
        Draw a line segment.

        :param start: ``(2,)``
        :param end: ``(2,)``
        :param colour: red, green, blue
        """
        along = end - start
        length = max(float(along @ along), 1e-12)
        position = np.clip((self.points - start) @ along / length, 0.0, 1.0)
        nearest = start + position[..., None] * along
        self.image[np.square(self.points - nearest).sum(-1) < self._pixel**2] = colour
