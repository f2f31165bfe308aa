"""PGAC: a potential, guided by the critic, that transports actions and says how likely they are."""

from sb3_energy.pgac.pgac import PGAC
from sb3_energy.pgac.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["PGAC", "CnnPolicy", "MlpPolicy", "MultiInputPolicy"]
