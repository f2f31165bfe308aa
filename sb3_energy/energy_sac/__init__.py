"""EnergySAC: SAC whose actions are refined by its critic."""

from sb3_energy.energy_sac.energy_sac import EnergySAC
from sb3_energy.energy_sac.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_energy.energy_sac.presets import flash_sac_kwargs

__all__ = ["CnnPolicy", "EnergySAC", "MlpPolicy", "MultiInputPolicy", "flash_sac_kwargs"]
