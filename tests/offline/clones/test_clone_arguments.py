"""No argument of a clone is accepted and ignored: each changes what a short training leaves, or a reason is given."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_energy import BC, NearestNeighbour
from sb3_energy.keywords import accepted_keywords
from tests.offline.small_clone import Reach, data

OBS = data(6, seed=8).observations


class Doubled(FlattenExtractor):
    def __init__(self, observation_space, factor=2.0):
        super().__init__(observation_space)
        self.factor = factor

    def forward(self, observations):
        return self.factor * super().forward(observations)


OF_ALGORITHM = dict(dataset=data(seed=1), learning_rate=1e-2, batch_size=4, policy_kwargs=dict(net_arch=[4]), seed=3)
WITHOUT_EFFECT = dict(
    policy="chooses among the policies, which other tests train",
    env="is only evaluated in, and gives its spaces",
    tensorboard_log="where the log goes",
    verbose="what is printed",
    device="where it runs",
    _init_setup_model="SB3's own, when a model is loaded",
)
OF_POLICY = dict(
    net_arch=[4, 4],
    activation_fn="Tanh",
    normalize_observations=False,
    action_bounds="data",
    features_extractor_class=Doubled,
    features_extractor_kwargs=dict(factor=3.0),
    optimizer_class=th.optim.SGD,
    optimizer_kwargs=dict(weight_decay=0.5),
    head="mixture",
    n_components=3,
    backbone="simba",
)
BESIDE = dict(features_extractor_kwargs=dict(features_extractor_class=Doubled), n_components=dict(head="mixture"))
OF_NEIGHBOURS = dict(n_neighbours=3, normalize_observations=False)
POLICY_WITHOUT_EFFECT = dict(
    observation_space="the data's", action_space="the data's", lr_schedule="the algorithm's",
    normalize_images="of images, which SB3 preprocesses",
)  # fmt: skip


def left(algorithm, **given):
    """Predictions after a short training, drawn with one seed."""
    kwargs = dict(dataset=data(), seed=0, device="cpu") | given
    if algorithm is BC:
        kwargs = dict(batch_size=16) | kwargs | dict(policy_kwargs=dict(net_arch=[8]) | kwargs.get("policy_kwargs", {}))
    model = algorithm("MlpPolicy", env=Reach(), **kwargs).learn(4)
    th.manual_seed(0)
    return np.concatenate([model.predict(OBS)[0], [[float(model._latest_losses["loss"]), 0.0]]])


@pytest.mark.parametrize("name", OF_ALGORITHM)
@pytest.mark.parametrize("algorithm", [BC, NearestNeighbour])
def test_arguments_of_the_algorithm(algorithm, name):
    if algorithm is NearestNeighbour and name in ("learning_rate", "policy_kwargs"):
        return  # it has none, or the next tests' own
    assert not np.array_equal(left(algorithm), left(algorithm, **{name: OF_ALGORITHM[name]}))


@pytest.mark.parametrize("name", OF_POLICY)
def test_arguments_of_the_policy(name):
    beside = BESIDE.get(name, {})
    given = beside | {name: OF_POLICY[name]}
    assert not np.array_equal(left(BC, policy_kwargs=beside), left(BC, policy_kwargs=given))


@pytest.mark.parametrize("name", OF_NEIGHBOURS)
def test_arguments_of_nearest_neighbours(name):
    assert not np.array_equal(left(NearestNeighbour), left(NearestNeighbour, policy_kwargs={name: OF_NEIGHBOURS[name]}))


def test_every_argument_is_here():
    assert set(accepted_keywords(BC)) == set(OF_ALGORITHM) | set(WITHOUT_EFFECT)
    assert set(accepted_keywords(NearestNeighbour)) == (set(OF_ALGORITHM) | set(WITHOUT_EFFECT)) - {"learning_rate"}
    assert set(accepted_keywords(BC.policy_aliases["MlpPolicy"])) == set(OF_POLICY) | set(POLICY_WITHOUT_EFFECT)
    known = set(accepted_keywords(NearestNeighbour.policy_aliases["MlpPolicy"]))
    assert known == set(OF_NEIGHBOURS) | set(POLICY_WITHOUT_EFFECT)
