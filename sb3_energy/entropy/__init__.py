"""Estimators of the entropy of a refined policy. A new one is a file and a line in ``ENTROPY_ESTIMATORS``."""

from sb3_energy.entropy.base import BaseEntropy
from sb3_energy.entropy.soft_value import SoftValue, SoftValueEntropy, soft_value
from sb3_energy.types import EntropyEstimator

ENTROPY_ESTIMATORS: dict[str, type[EntropyEstimator]] = {"base": BaseEntropy, "soft_value": SoftValueEntropy}

__all__ = ["ENTROPY_ESTIMATORS", "BaseEntropy", "SoftValue", "SoftValueEntropy", "soft_value"]
