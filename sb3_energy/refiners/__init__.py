"""Refiners: move particles toward ``exp(-energy)``. A new one is a file and a line in ``REFINERS``."""

from sb3_energy.refiners.adaptive import computed_part, refine_until_still
from sb3_energy.refiners.annealed_gradient import AnnealedGradient, warn_if_out_of_reach
from sb3_energy.refiners.autoregressive_derivative_free import AutoregressiveDerivativeFree
from sb3_energy.refiners.derivative_free import DerivativeFree
from sb3_energy.refiners.flow import Flow
from sb3_energy.refiners.hmc import HamiltonianMonteCarlo
from sb3_energy.refiners.identity import Identity
from sb3_energy.refiners.jko import jko_langevin
from sb3_energy.refiners.langevin import Langevin
from sb3_energy.refiners.loop import refine, refined_particles, select
from sb3_energy.refiners.mala import MetropolisAdjustedLangevin
from sb3_energy.refiners.mean_flow import MeanFlow
from sb3_energy.refiners.mppi import MPPI
from sb3_energy.refiners.sequence import RefinerSequence
from sb3_energy.refiners.smc import AnnealedSMC
from sb3_energy.refiners.snis import SelfNormalizedImportanceSampling
from sb3_energy.refiners.svgd import SteinVariationalGradientDescent
from sb3_energy.types import Refiner

REFINERS: dict[str, type[Refiner]] = {
    "none": Identity,
    "langevin": Langevin,
    "mala": MetropolisAdjustedLangevin,
    "hmc": HamiltonianMonteCarlo,
    "svgd": SteinVariationalGradientDescent,
    "mppi": MPPI,
    "annealed_gradient": AnnealedGradient,
    "derivative_free": DerivativeFree,
    "autoregressive_derivative_free": AutoregressiveDerivativeFree,
    "flow": Flow,
    "mean_flow": MeanFlow,
    "snis": SelfNormalizedImportanceSampling,
    "smc": AnnealedSMC,
}

__all__ = [
    "MPPI",
    "REFINERS",
    "AnnealedGradient",
    "AnnealedSMC",
    "AutoregressiveDerivativeFree",
    "DerivativeFree",
    "Flow",
    "HamiltonianMonteCarlo",
    "Identity",
    "Langevin",
    "MeanFlow",
    "MetropolisAdjustedLangevin",
    "RefinerSequence",
    "SelfNormalizedImportanceSampling",
    "SteinVariationalGradientDescent",
    "computed_part",
    "jko_langevin",
    "refine",
    "refine_until_still",
    "refined_particles",
    "select",
    "warn_if_out_of_reach",
]
