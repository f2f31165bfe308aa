import copy
import inspect
import pickle

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.sac.policies import Actor
from torch import nn

from sb3_energy.networks import BACKBONES
from sb3_energy.policies.actor import BackboneActor

OBS_DIM, ACTION_DIM = 5, 3
OBS_SPACE = spaces.Box(-np.inf, np.inf, (OBS_DIM,))
ACTION_SPACE = spaces.Box(-1, 1, (ACTION_DIM,))


class DropoutExtractor(BaseFeaturesExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space, 8)
        self.layers = nn.Sequential(nn.Linear(OBS_DIM, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))

    def forward(self, observations):
        return self.layers(observations)


def make(cls, net_arch=(32, 32), extractor_class=FlattenExtractor, observation_space=OBS_SPACE, **kwargs):
    th.manual_seed(0)
    extractor = extractor_class(observation_space)
    return cls(observation_space, ACTION_SPACE, list(net_arch), extractor, extractor.features_dim, **kwargs)


def observations(n=6, seed=1):
    return 2.0 + 3.0 * th.randn(n, OBS_DIM, generator=th.Generator().manual_seed(seed))


@pytest.mark.parametrize("net_arch", [(), (32, 16)])
@pytest.mark.parametrize("use_sde", [False, True])
def test_plain_is_bit_equal_to_sb3(net_arch, use_sde):
    results = []
    for cls in (Actor, BackboneActor):
        actor = make(cls, net_arch, use_sde=use_sde)
        if use_sde:
            actor.reset_noise(6)
        action, log_prob = actor.action_log_prob(observations())
        (log_prob.sum() + action.square().sum()).backward()
        gradients = [p.grad for p in actor.parameters() if p.grad is not None]
        results.append([action, log_prob, actor(observations(), deterministic=True), th.rand(1), *gradients])
        names = [name for name, _ in actor.named_parameters()]
        results[-1].append(names)
    *tensors, names = results[0]
    *own_tensors, own_names = results[1]
    assert own_names == names and len(tensors) > 5
    assert all(th.equal(a, b) for a, b in zip(own_tensors, tensors, strict=True))


@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_parameter_learns(backbone, use_sde):
    actor = make(BackboneActor, backbone=backbone, use_sde=use_sde, log_std_init=-1.0)
    if use_sde:
        actor.reset_noise(6)
    action, log_prob = actor.action_log_prob(observations())
    assert action.shape == (6, ACTION_DIM) and log_prob.shape == (6,) and action.abs().max() <= 1
    (log_prob * th.arange(6) + (action * th.arange(3)).sum(-1)).sum().backward()
    for name, parameter in actor.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_heads_come_after_the_trunk():
    actor = make(BackboneActor, backbone="simba")
    actor.update_normalization(observations(100))
    mean, log_std, _ = actor.get_action_dist_params(observations())
    latent = actor.latent_pi(actor.normalizer(observations()))
    assert th.equal(mean, actor.mu(latent)) and th.equal(log_std, actor.log_std(latent))
    assert actor.net_arch == [32, 32] and actor.features_dim == OBS_DIM


def test_simba_normalises_observations():
    actor = make(BackboneActor, backbone="simba")
    obs = observations(500)
    raw = actor(obs, deterministic=True)
    actor.update_normalization(obs)
    assert not th.allclose(actor(obs, deterministic=True), raw, atol=1e-3)
    scaled = make(BackboneActor, backbone="simba")
    scaled.update_normalization(10.0 * obs - 7.0)
    assert th.allclose(scaled(10.0 * obs - 7.0, deterministic=True), actor(obs, deterministic=True), atol=1e-4)


@pytest.mark.parametrize("backbone", ["plain", "layer_norm", "bro"])
def test_update_normalization_of_the_others_changes_nothing(backbone):
    actor = make(BackboneActor, backbone=backbone)
    before = actor(observations(), deterministic=True)
    actor.update_normalization(observations(100))
    assert th.equal(actor(observations(), deterministic=True), before)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("use_sde", [False, True])
def test_save_load_pickle_and_copy(backbone, use_sde, tmp_path):
    actor = make(BackboneActor, backbone=backbone, activation_fn=nn.Tanh, use_sde=use_sde)
    actor.update_normalization(observations(100))
    with th.no_grad():  # SB3's distributions keep tensors, which cannot be copied with their graph
        if use_sde:
            actor.reset_noise()
        expected = actor(observations(), deterministic=True)
    actor.save(tmp_path / "actor.pth")
    loaded = BackboneActor.load(tmp_path / "actor.pth", device="cpu")
    assert loaded.backbone == backbone and loaded.net_arch == [32, 32] and loaded.features_dim == OBS_DIM
    for twin in (loaded, copy.deepcopy(actor), pickle.loads(pickle.dumps(actor))):
        assert th.equal(twin(observations(), deterministic=True), expected)
        assert twin.state_dict().keys() == actor.state_dict().keys()


def test_every_constructor_parameter_is_saved():
    names = set(inspect.signature(BackboneActor).parameters)
    assert set(make(BackboneActor)._get_constructor_parameters()) == names
    assert names - set(inspect.signature(Actor).parameters) == {"backbone", "log_std_range"}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_train_and_eval_modes_of_the_extractor(backbone):
    actor = make(BackboneActor, extractor_class=DropoutExtractor, backbone=backbone)
    obs = observations()
    actor.set_training_mode(True)
    assert not th.equal(actor(obs, deterministic=True), actor(obs, deterministic=True))
    actor.set_training_mode(False)
    before = copy.deepcopy(actor.state_dict())
    assert th.equal(actor(obs, deterministic=True), actor(obs, deterministic=True))
    actor.update_normalization(obs)
    assert all(th.equal(value, before[name]) for name, value in actor.state_dict().items())


def test_float64_observations():
    observation_space = spaces.Box(-1, 1, (OBS_DIM,), dtype=np.float64)
    actor = make(BackboneActor, observation_space=observation_space, backbone="simba")
    actor.update_normalization(observations(100).double())
    action, _ = actor.predict(observation_space.sample(), deterministic=True)
    assert action.shape == (ACTION_DIM,) and np.isfinite(action).all()


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"backbone must be one of .*, got 'resnet'"):
        make(BackboneActor, backbone="resnet")
    with pytest.raises(ValueError, match="net_arch of backbone 'simba' must be the same width"):
        make(BackboneActor, net_arch=(), backbone="simba")
