"""EnergySAC: SAC whose actions are refined by its critic."""

from sb3_energy.energy_sac.energy_sac import EnergySAC
from sb3_energy.energy_sac.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["CnnPolicy", "EnergySAC", "MlpPolicy", "MultiInputPolicy"]
