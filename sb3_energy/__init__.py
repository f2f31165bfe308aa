"""Energy-guided policies for Stable-Baselines3."""

from importlib.resources import files

import sb3_energy.envs  # noqa: F401  (registers the environments with gymnasium)
from sb3_energy.common.device_buffer import DeviceReplayBuffer
from sb3_energy.common.landscape_callback import LandscapeCallback
from sb3_energy.energy_matching import EnergyMatching
from sb3_energy.energy_sac import EnergySAC
from sb3_energy.pgac import PGAC

__version__ = files(__name__).joinpath("version.txt").read_text().strip()

__all__ = ["PGAC", "DeviceReplayBuffer", "EnergyMatching", "EnergySAC", "LandscapeCallback", "__version__"]
