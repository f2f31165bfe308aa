"""Clones of an expert by explicit policies, which implicit ones are compared with."""

from sb3_energy.offline.clones.behaviour_cloning import BC, BCCnnPolicy, BCMultiInputPolicy, BCPolicy
from sb3_energy.offline.clones.nearest_neighbour import NearestNeighbour, NearestNeighbourPolicy

__all__ = ["BC", "BCCnnPolicy", "BCMultiInputPolicy", "BCPolicy", "NearestNeighbour", "NearestNeighbourPolicy"]
