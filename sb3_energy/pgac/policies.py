"""The policies of PGAC, under SB3's names."""

from typing import ClassVar

from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN

from sb3_energy.pgac.potential_policy import PotentialPolicy

MlpPolicy = PotentialPolicy


class CnnPolicy(PotentialPolicy):
    """Image variant of :class:`PotentialPolicy`: features by SB3's ``NatureCNN``. Same arguments."""

    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = NatureCNN


class MultiInputPolicy(PotentialPolicy):
    """Variant of :class:`PotentialPolicy` for dict observations: features by SB3's ``CombinedExtractor``. Same arguments."""

    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = CombinedExtractor
