"""Energy Matching: a potential that is velocity field and energy at once, learned from samples or expert pairs."""

from sb3_energy.offline.energy_matching.energy_matching import EnergyMatching

__all__ = ["EnergyMatching"]
