"""Figures of the energy of a refined policy."""

from sb3_energy.landscape.callback import LandscapeCallback
from sb3_energy.landscape.drawing import draw_landscape
from sb3_energy.landscape.landscape import Landscape, landscape_of

__all__ = ["Landscape", "LandscapeCallback", "draw_landscape", "landscape_of"]
