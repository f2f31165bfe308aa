"""The networks under the energies: trunks ("backbones") and the normalisation of what they are fed."""

from sb3_energy.networks.activations import find_activation
from sb3_energy.networks.backbones import (
    BACKBONES,
    Backbone,
    backbone_beside,
    default_activation,
    find_backbone,
    initialize_head,
    make_backbone,
)
from sb3_energy.networks.batch_norm import BatchNorm, batch_norms, batch_statistics, running_statistics
from sb3_energy.networks.by_hand.ensembles import BoundEnsemble, WeighFn
from sb3_energy.networks.by_hand.layers import InGrad, Stack
from sb3_energy.networks.by_hand.untouched import (
    Originals,
    are_learned_once,
    autograd_is_plain,
    calls_are_original,
    has_own,
    hooks_of,
    is_untouched,
    optimizes_only,
)
from sb3_energy.networks.categorical_mean import CategoricalMean
from sb3_energy.networks.energy import EnergyNetwork, ScalarNetwork
from sb3_energy.networks.mixture_density import GaussianMixture, MixtureDensityNetwork
from sb3_energy.networks.normalization import RunningNorm, make_normalizer
from sb3_energy.networks.particles import evaluate_particles
from sb3_energy.networks.potential import SMOOTH_ACTIVATIONS, PotentialNetwork
from sb3_energy.networks.prefix_energy import PrefixEnergies
from sb3_energy.networks.spatial_softmax import SpatialSoftmax, SpatialSoftmaxCNN
from sb3_energy.networks.unit_norms import project_to_unit_norms
from sb3_energy.networks.value_scale import ScaledLinear, ScaledValues, ValueScale, rescale, scaled_heads, set_scale
from sb3_energy.networks.velocity import FieldNetwork, VelocityNetwork

__all__ = [
    "BACKBONES",
    "SMOOTH_ACTIVATIONS",
    "Backbone",
    "BatchNorm",
    "BoundEnsemble",
    "CategoricalMean",
    "EnergyNetwork",
    "FieldNetwork",
    "GaussianMixture",
    "InGrad",
    "MixtureDensityNetwork",
    "Originals",
    "PotentialNetwork",
    "PrefixEnergies",
    "RunningNorm",
    "ScalarNetwork",
    "ScaledLinear",
    "ScaledValues",
    "SpatialSoftmax",
    "SpatialSoftmaxCNN",
    "Stack",
    "ValueScale",
    "VelocityNetwork",
    "WeighFn",
    "are_learned_once",
    "autograd_is_plain",
    "backbone_beside",
    "batch_norms",
    "batch_statistics",
    "calls_are_original",
    "default_activation",
    "evaluate_particles",
    "find_activation",
    "find_backbone",
    "has_own",
    "hooks_of",
    "initialize_head",
    "is_untouched",
    "make_backbone",
    "make_normalizer",
    "optimizes_only",
    "project_to_unit_norms",
    "rescale",
    "running_statistics",
    "scaled_heads",
    "set_scale",
]
