"""Implicit behavioral cloning: an energy of observations and actions, whose lowest point is what the policy does."""

from sb3_energy.offline.ibc.energy_training import LOSSES, EnergyTraining
from sb3_energy.offline.ibc.ibc import IBC
from sb3_energy.offline.ibc.policies import IBCCnnPolicy, IBCMultiInputPolicy, IBCPolicy

__all__ = ["IBC", "LOSSES", "EnergyTraining", "IBCCnnPolicy", "IBCMultiInputPolicy", "IBCPolicy"]
