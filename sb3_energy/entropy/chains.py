"""Chains whose density is known where they start."""

import torch as th

from sb3_energy.types import Chains


def known_log_prob(chains: Chains) -> th.Tensor:
    """
    The log-density where chains start.

    :param chains: runs of a refiner
    :return: ``(B, M)``
    :raises ValueError: if it is not known, after a resampling or from a base without a density
    """
    if chains.log_prob is None:
        raise ValueError(
            "this entropy_estimator needs the log-density of the chains' starts, which a resampling (n_particles above 1) or "
            "a base without a density leaves unknown; use n_particles=1 and a base with a density, or 'soft_value'"
        )
    return chains.log_prob
