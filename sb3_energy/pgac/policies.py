"""The policies of PGAC, under SB3's names."""

from typing import ClassVar

from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN

from sb3_energy.pgac.potential_policy import PotentialPolicy

MlpPolicy = PotentialPolicy


class CnnPolicy(PotentialPolicy):
    """:class:`PotentialPolicy` for images: features by SB3's ``NatureCNN``. Same arguments."""

    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = NatureCNN


class MultiInputPolicy(PotentialPolicy):
    """:class:`PotentialPolicy` for dictionaries: features by SB3's ``CombinedExtractor``. Same arguments."""

    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = CombinedExtractor
