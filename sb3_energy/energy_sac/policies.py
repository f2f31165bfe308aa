"""The policies of EnergySAC, under SB3's names."""

from typing import ClassVar

from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN

from sb3_energy.policies.refined_policy import RefinedPolicy

MlpPolicy = RefinedPolicy


class CnnPolicy(RefinedPolicy):
    """Image variant of :class:`RefinedPolicy`: features by SB3's ``NatureCNN``. Same arguments."""

    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = NatureCNN


class MultiInputPolicy(RefinedPolicy):
    """Variant of :class:`RefinedPolicy` for dict observations: features by SB3's ``CombinedExtractor``. Same arguments."""

    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = CombinedExtractor
