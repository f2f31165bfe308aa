"""Energy-based reinforcement learning for Stable-Baselines3."""

from importlib.resources import files

__version__ = files(__name__).joinpath("version.txt").read_text().strip()

__all__ = ["__version__"]
