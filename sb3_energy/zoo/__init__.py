"""The RL Zoo: registration of the algorithms, Optuna samplers, checkpoints that survive a kill."""

from sb3_energy.zoo.paths import hyperparams_dir
from sb3_energy.zoo.plugin import ALGORITHMS, Algorithm, register

__all__ = ["ALGORITHMS", "Algorithm", "hyperparams_dir", "register"]
