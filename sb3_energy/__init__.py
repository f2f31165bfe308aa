"""Energy-guided policies for Stable-Baselines3."""

from importlib import resources

import sb3_energy.envs  # noqa: F401  (registers the environments with gymnasium)
from sb3_energy.energy_sac import EnergySAC, flash_sac_kwargs
from sb3_energy.fast_updates.device_buffer import DeviceReplayBuffer
from sb3_energy.landscape import LandscapeCallback
from sb3_energy.offline import BC, IBC, NearestNeighbour, OfflineDataset, load_dataset, record_dataset
from sb3_energy.offline.energy_matching import EnergyMatching
from sb3_energy.pgac import PGAC

__version__ = resources.files(__name__).joinpath("version.txt").read_text().strip()

__all__ = [
    "BC",
    "IBC",
    "PGAC",
    "DeviceReplayBuffer",
    "EnergyMatching",
    "EnergySAC",
    "LandscapeCallback",
    "NearestNeighbour",
    "OfflineDataset",
    "__version__",
    "flash_sac_kwargs",
    "load_dataset",
    "record_dataset",
]
