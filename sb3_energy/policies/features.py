"""Running normalisation of features, between the features extractor and the backbone of an actor or critic."""

import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_energy.networks import RunningNorm
from sb3_energy.policies.policy_files import PersistentModel


class NormalizedFeatures(PersistentModel):
    """
    Mixin: the features go through ``normalizer`` wherever they are extracted.

    The normaliser acts on the extracted features and has statistics only where the backbone asks for them and the
    features extractor learns nothing (flat observations, dictionaries of vectors); it is the identity everywhere else.
    """

    features_extractor: BaseFeaturesExtractor
    normalizer: nn.Module

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> th.Tensor:
        """
        Preprocess the observation, extract its features and normalise them.

        :param obs: observation
        :param features_extractor: the features extractor to use
        :return: ``(B, F)``
        """
        return self.normalizer(super().extract_features(obs, features_extractor))

    def update_normalization(self, obs: PyTorchObs) -> None:
        """
        Update the running statistics, where the normaliser has them.

        :param obs: ``B`` observations
        """
        if isinstance(self.normalizer, RunningNorm):
            with th.no_grad():
                self.normalizer.update(super().extract_features(obs, self.features_extractor))


def first_observations(obs: PyTorchObs, n: int) -> PyTorchObs:
    """
    Slice the first observations of a batch, which may be a dict.

    :param obs: ``B`` observations
    :param n: how many
    :return: the first ``n`` of them, or all
    """
    return {key: part[:n] for key, part in obs.items()} if isinstance(obs, dict) else obs[:n]


def joined_observations(obs: PyTorchObs, next_obs: PyTorchObs) -> PyTorchObs:
    """
    Put two batches of observations, which may be dicts, into one.

    :param obs: ``B`` observations
    :param next_obs: of the same space
    :return: both, the first ones first
    """
    if isinstance(obs, dict):
        assert isinstance(next_obs, dict)
        return {key: th.cat([part, next_obs[key]]) for key, part in obs.items()}
    assert isinstance(next_obs, th.Tensor)
    return th.cat([obs, next_obs])
