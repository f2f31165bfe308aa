"""Offline algorithms: learning from a data set, without an environment."""

from sb3_energy.offline.clones import BC, NearestNeighbour
from sb3_energy.offline.ibc import IBC
from sb3_energy.offline.loading import load_dataset
from sb3_energy.offline.offline_algorithm import OfflineAlgorithm
from sb3_energy.offline.offline_dataset import OfflineDataset
from sb3_energy.offline.recording import record_dataset

__all__ = ["BC", "IBC", "NearestNeighbour", "OfflineAlgorithm", "OfflineDataset", "load_dataset", "record_dataset"]
