"""The smallest offline algorithm: one network that learns actions by least squares."""

from typing import ClassVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN, create_mlp
from torch import nn

from sb3_energy.offline.offline_algorithm import OfflineAlgorithm
from sb3_energy.offline.offline_dataset import OfflineDataset
from sb3_energy.offline.policies import OfflinePolicy

BOX = spaces.Box(np.float32([-2.0, -1.0]), np.float32([2.0, 3.0]), dtype=np.float32)
PLANE = spaces.Box(-np.inf, np.inf, (3,), np.float32)


class ClonePolicy(OfflinePolicy):
    """An action of features, with a little dropout and noise, so that updates and predictions draw."""

    def __init__(self, *args, dropout=0.1, **kwargs):
        super().__init__(*args, **kwargs)
        self.dropout = dropout
        self._build(args[2] if len(args) > 2 else kwargs["lr_schedule"])

    def _get_constructor_parameters(self):
        return super()._get_constructor_parameters() | dict(dropout=self.dropout)

    def make_networks(self):
        layers = create_mlp(self.features_dim, self.action_dim, self.net_arch, self.activation_fn)
        self.network = nn.Sequential(nn.Dropout(self.dropout), *layers)

    def _predict(self, observation, deterministic=False):
        actions = self.network(self.features(observation))
        return actions if deterministic else actions + 0.1 * th.randn_like(actions)


class CnnClonePolicy(ClonePolicy):
    default_features_extractor_class = NatureCNN


class MultiInputClonePolicy(ClonePolicy):
    default_features_extractor_class = CombinedExtractor


class Clone(OfflineAlgorithm):
    policy_aliases: ClassVar = {
        "MlpPolicy": ClonePolicy,
        "CnnPolicy": CnnClonePolicy,
        "MultiInputPolicy": MultiInputClonePolicy,
    }

    def _losses(self, batch):
        error = self.policy.network(self.policy.features(batch.observations)) - batch.actions
        return dict(loss=error.square().mean(), largest_error=error.abs().max())


def expert(observations):
    """Actions inside of ``BOX`` that depend on the observations."""
    x = np.tanh(observations[:, :2])
    return (BOX.low + 0.5 * (x + 1.0) * (BOX.high - BOX.low)).astype(np.float32)


def data(n=200, seed=0, **columns):
    """Episodes of twenty rows, whose observations have another mean and scale in each coordinate."""
    noise = np.random.default_rng(seed).standard_normal((n, 3)).astype(np.float32)
    observations = noise * np.float32([1.0, 10.0, 0.1]) + np.float32([0.0, 5.0, -3.0])
    given = dict(
        observations=observations,
        actions=expert(noise),
        rewards=noise[:, 0],
        truncations=np.arange(n) % 20 == 19,
        observation_space=PLANE,
        action_space=BOX,
    )
    return OfflineDataset(**(given | columns))


def small(dataset=None, policy="MlpPolicy", **kwargs):
    given = dict(batch_size=16, policy_kwargs=dict(net_arch=[8]), seed=0, device="cpu")
    return Clone(policy, data() if dataset is None else dataset, **(given | kwargs))


class Reach(gym.Env):
    """Its reward is how near the action is to the expert's; five steps."""

    action_space = BOX
    observation_space = PLANE

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._seen(), {}

    def _seen(self):
        self.noise = self.np_random.standard_normal((1, 3)).astype(np.float32)
        return (self.noise * np.float32([1.0, 10.0, 0.1]) + np.float32([0.0, 5.0, -3.0]))[0]

    def step(self, action):
        reward = -float(np.square(action - expert(self.noise)[0]).sum())
        self.steps += 1
        return self._seen(), reward, False, self.steps == 5, {}
