"""Estimators of the entropy of a refined policy. A new one is a file and a line in ``ENTROPY_ESTIMATORS``."""

from sb3_energy.entropy.base import BaseEntropy
from sb3_energy.entropy.divergence import DivergenceEntropy
from sb3_energy.entropy.mixture import MixtureEntropy
from sb3_energy.entropy.path import PathEntropy
from sb3_energy.entropy.smc import AnnealedEntropy
from sb3_energy.entropy.soft_value import SoftValue, SoftValueEntropy, soft_value
from sb3_energy.entropy.trace import TraceEntropy
from sb3_energy.entropy.vne import von_neumann_entropy
from sb3_energy.types import EntropyEstimator

ENTROPY_ESTIMATORS: dict[str, type[EntropyEstimator]] = {
    "base": BaseEntropy,
    "soft_value": SoftValueEntropy,
    "trace": TraceEntropy,
    "mixture": MixtureEntropy,
    "path": PathEntropy,
    "divergence": DivergenceEntropy,
    "smc": AnnealedEntropy,
}

__all__ = [
    "ENTROPY_ESTIMATORS",
    "AnnealedEntropy",
    "BaseEntropy",
    "DivergenceEntropy",
    "MixtureEntropy",
    "PathEntropy",
    "SoftValue",
    "SoftValueEntropy",
    "TraceEntropy",
    "soft_value",
    "von_neumann_entropy",
]
