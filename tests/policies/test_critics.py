import copy
import inspect
import pickle

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.tqc.policies import Critic as TQCCritic
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor
from torch import nn

from sb3_energy.networks import BACKBONES, Backbone, RunningNorm
from sb3_energy.policies.critics import EnsembleCritic
from sb3_energy.policies.quantile_critic import QuantileCritic
from tests.batches import with_statistics

OBS_DIM, ACTION_DIM, B, N = 5, 3, 6, 4
OBS_SPACE = spaces.Box(-np.inf, np.inf, (OBS_DIM,))
ACTION_SPACE = spaces.Box(-1, 1, (ACTION_DIM,))
CLASSES = [EnsembleCritic, QuantileCritic]


class LearnedExtractor(BaseFeaturesExtractor):
    """A features extractor with parameters, dropout and batch norm."""

    def __init__(self, observation_space, features_dim=8):
        super().__init__(observation_space, features_dim)
        self.layers = nn.Sequential(nn.Linear(OBS_DIM, features_dim), nn.BatchNorm1d(features_dim), nn.Dropout(0.5))

    def forward(self, observations):
        return self.layers(observations)


class Doubled(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return self.layers(2.0 * x)


def wrapped_first_layer(input_dim, net_arch, activation_fn):
    return nn.Sequential(Doubled(nn.Linear(input_dim, net_arch[-1])), activation_fn())


def make(cls, net_arch=(32, 32), extractor_class=FlattenExtractor, observation_space=OBS_SPACE, seed=0, **kwargs):
    th.manual_seed(seed)
    extractor = extractor_class(observation_space)
    return cls(observation_space, ACTION_SPACE, list(net_arch), extractor, extractor.features_dim, **kwargs)


def batch(seed=1):
    generator = th.Generator().manual_seed(seed)
    return th.randn(B, OBS_DIM, generator=generator), 2 * th.rand(B, N, ACTION_DIM, generator=generator) - 1


def warmed_up(critic):
    critic.update_normalization(2.0 + 3.0 * th.randn(100, OBS_DIM))
    return with_statistics(critic)


@pytest.mark.parametrize("net_arch", [(), (32, 16)])
@pytest.mark.parametrize("n_critics", [1, 3])
def test_plain_is_bit_equal_to_sb3(net_arch, n_critics):
    expected = make(ContinuousCritic, net_arch, n_critics=n_critics)
    after_expected = th.rand(1)
    critic = make(EnsembleCritic, net_arch, n_critics=n_critics)
    assert th.equal(th.rand(1), after_expected)
    assert list(critic.state_dict()) == list(expected.state_dict())
    assert [name for name, _ in critic.named_parameters()] == [name for name, _ in expected.named_parameters()]
    obs, actions = batch()
    ours, theirs = critic(obs, actions[:, 0]), expected(obs, actions[:, 0])
    assert len(ours) == n_critics and ours[0].shape == (B, 1)
    assert all(th.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert th.equal(critic.q1_forward(obs, actions[:, 0]), expected.q1_forward(obs, actions[:, 0]))
    critic.by_hand = False
    for networks, results in ((critic, critic(obs, actions[:, 0])), (expected, theirs)):
        sum(result.square().sum() for result in results).backward()
        assert all(parameter.grad is not None for parameter in networks.parameters())
    assert all(th.equal(p.grad, q.grad) for p, q in zip(critic.parameters(), expected.parameters(), strict=True))
    critic.by_hand = True
    critic.zero_grad()
    sum(result.square().sum() for result in critic(obs, actions[:, 0])).backward()
    for p, q in zip(critic.parameters(), expected.parameters(), strict=True):
        th.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-6 * q.grad.abs().max().item())


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("n_particles", [1, N])
def test_encode_and_evaluate_are_forward(cls, backbone, n_particles):
    critic = warmed_up(make(cls, backbone=backbone, n_critics=3, share_features_extractor=False))
    obs, actions = batch()
    actions = actions[:, :n_particles]
    q_values = critic.evaluate(critic.encode(obs), actions)
    assert q_values.shape == (3, B, n_particles)
    for particle in range(n_particles):
        results = critic(obs, actions[:, particle])
        expected = results.mean(-1).T if cls is QuantileCritic else th.cat(results, dim=1).T
        assert th.allclose(q_values[:, :, particle], expected, atol=1e-6)
        if n_particles == 1:
            assert th.equal(q_values[:, :, particle], expected)
        assert th.allclose(critic.q1_forward(obs, actions[:, particle])[:, 0], expected[0], atol=1e-6)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradient_of_evaluate_is_that_of_forward(cls, backbone):
    critic = warmed_up(make(cls, backbone=backbone, share_features_extractor=False)).double()
    obs, actions = batch()
    features, actions = critic.encode(obs).double(), actions.double().requires_grad_(True)
    (gradient,) = th.autograd.grad(critic.evaluate(features, actions)[1].sum(), actions)
    flat = actions.detach().flatten(0, 1).requires_grad_(True)
    repeated = features.repeat_interleave(N, dim=0)
    q_values = critic.q_networks[1](th.cat([repeated, flat], dim=1)).mean(dim=1)
    (expected,) = th.autograd.grad(q_values.sum(), flat)
    assert gradient.abs().min() > 0
    assert th.allclose(gradient, expected.reshape(B, N, ACTION_DIM), atol=1e-12)


@pytest.mark.parametrize("cls", CLASSES)
def test_without_layers(cls):
    critic = make(cls, net_arch=(), share_features_extractor=False)
    obs, actions = batch()
    expected = th.stack([critic.evaluate(critic.encode(obs), actions[:, [i]]).squeeze(-1) for i in range(N)], dim=-1)
    assert th.allclose(critic.evaluate(critic.encode(obs), actions), expected, atol=1e-6)


def test_backbone_of_the_users_own(monkeypatch):
    monkeypatch.setitem(BACKBONES, "doubled", Backbone(wrapped_first_layer))
    critic = make(EnsembleCritic, backbone="doubled")
    obs, actions = batch()
    q_values = critic.evaluate(critic.encode(obs), actions)
    assert th.allclose(q_values[:, :, 2], th.cat(critic(obs, actions[:, 2]), dim=1).T, atol=1e-6)


@pytest.mark.parametrize("n_quantiles", [1, 25])
def test_quantile_critic_is_that_of_sb3_contrib(n_quantiles):
    expected = make(TQCCritic, n_quantiles=n_quantiles, n_critics=3)
    critic = make(QuantileCritic, n_quantiles=n_quantiles, n_critics=3, top_quantiles_to_drop_per_net=0)
    assert list(critic.state_dict()) == list(expected.state_dict())
    assert sum(p.numel() for p in critic.parameters()) == sum(p.numel() for p in expected.parameters())
    obs, actions = batch()
    quantiles = critic(obs, actions[:, 0])
    assert quantiles.shape == (B, 3, n_quantiles) and th.equal(quantiles, expected(obs, actions[:, 0]))
    assert critic.quantiles_total == expected.quantiles_total == 3 * n_quantiles
    outputs = critic.outputs(critic.encode(obs), actions)
    assert outputs.shape == (3, B, N, n_quantiles)
    assert th.allclose(outputs[:, :, 0].transpose(0, 1), quantiles, atol=1e-6)
    assert th.equal(critic.evaluate(critic.encode(obs), actions), outputs.mean(-1))


def test_values_and_loss_of_scalar_critics():
    critic = make(EnsembleCritic, n_critics=3)
    obs, actions = batch()
    q_values = th.cat(critic(obs, actions[:, 0]), dim=1)
    lowest = q_values.min(dim=1, keepdim=True).values
    assert th.equal(critic.target_values(obs, actions[:, 0]), lowest) and lowest.shape == (B, 1)
    assert th.equal(critic.policy_values(obs, actions[:, 0]), lowest)
    targets = th.randn(B, 1)
    expected = 0.5 * (q_values - targets).square().mean(dim=0).sum()
    assert th.allclose(critic.td_loss(obs, actions[:, 0], targets), expected)


def test_a_target_may_take_the_mean():
    critic = make(EnsembleCritic, n_critics=3, target_aggregate="mean")
    obs, actions = batch()
    q_values = th.cat(critic(obs, actions[:, 0]), dim=1)
    assert th.allclose(critic.target_values(obs, actions[:, 0]), q_values.mean(dim=1, keepdim=True))
    assert th.equal(critic.policy_values(obs, actions[:, 0]), q_values.min(dim=1, keepdim=True).values), (
        "the actor's stay SAC's"
    )
    with pytest.raises(ValueError, match=r"target_aggregate must be one of .*'max'"):
        make(EnsembleCritic, target_aggregate="max")


@pytest.mark.parametrize("n_dropped", [0, 2])
def test_values_and_loss_of_quantile_critics(n_dropped):
    critic = make(QuantileCritic, n_quantiles=5, top_quantiles_to_drop_per_net=n_dropped)
    obs, actions = batch()
    quantiles = critic(obs, actions[:, 0]).detach().numpy()
    expected = np.sort(quantiles.reshape(B, -1), axis=1)[:, : 10 - 2 * n_dropped]
    np.testing.assert_array_equal(critic.target_values(obs, actions[:, 0]).detach(), expected)
    values = critic.policy_values(obs, actions[:, 0]).detach()
    np.testing.assert_allclose(values[:, 0], quantiles.mean(axis=(1, 2)), atol=1e-6)
    targets = 3 * np.random.default_rng(0).standard_normal((B, 7)).astype(np.float32)
    delta = targets[:, None, None, :] - quantiles[:, :, :, None]
    huber = np.where(np.abs(delta) <= 1, 0.5 * delta**2, np.abs(delta) - 0.5)
    levels = (np.arange(5) + 0.5)[:, None] / 5
    loss = critic.td_loss(obs, actions[:, 0], th.as_tensor(targets)).item()
    assert loss == pytest.approx((np.abs(levels - (delta < 0)) * huber).mean(), rel=1e-5)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("shared", [True, False])
def test_shared_features_extractor_gets_no_gradient(cls, shared):
    critic = make(cls, extractor_class=LearnedExtractor, share_features_extractor=shared)
    obs, actions = batch()
    critic.evaluate(critic.encode(obs), actions).sum().backward()
    gradients = [parameter.grad for parameter in critic.features_extractor.parameters()]
    assert all(gradient is None for gradient in gradients) if shared else all(g is not None for g in gradients)
    assert critic.qf0[0].weight.grad.abs().sum() > 0


def test_encode_makes_no_graph_inside_no_grad():
    critic = make(EnsembleCritic, extractor_class=LearnedExtractor, share_features_extractor=False)
    with th.no_grad():
        assert not critic.encode(batch()[0]).requires_grad
    assert critic.encode(batch()[0]).requires_grad


@pytest.mark.parametrize("backbone", ["layer_norm", "simba"])
def test_train_and_eval_modes_of_the_extractor(backbone):
    critic = make(EnsembleCritic, extractor_class=LearnedExtractor, share_features_extractor=False, backbone=backbone)
    assert isinstance(critic.normalizer, nn.Identity)
    obs, actions = batch()
    critic.update_normalization(obs)
    critic.set_training_mode(True)
    assert not th.equal(critic(obs, actions[:, 0])[0], critic(obs, actions[:, 0])[0])
    critic.set_training_mode(False)
    before = copy.deepcopy(critic.state_dict())
    assert th.equal(critic(obs, actions[:, 0])[0], critic(obs, actions[:, 0])[0])
    assert all(th.equal(value, before[name]) for name, value in critic.state_dict().items())


@pytest.mark.parametrize("cls", CLASSES)
def test_simba_normalises_observations(cls):
    critic = make(cls, backbone="simba", share_features_extractor=False)
    obs = 100.0 + 20.0 * th.randn(500, OBS_DIM)
    assert th.equal(critic.encode(obs), obs)
    critic.update_normalization(obs)
    features = critic.encode(obs)
    assert features.mean(0).abs().max() < 1e-3 and (features.std(0) - 1).abs().max() < 1e-2
    scaled = make(cls, backbone="simba", share_features_extractor=False)
    scaled.update_normalization(0.1 * obs - 7.0)
    _, actions = batch()
    q_values = critic.evaluate(features[:B], actions)
    assert th.allclose(scaled.evaluate(scaled.encode(0.1 * obs[:B] - 7.0), actions), q_values, atol=1e-3)


def test_simba_normalises_dictionaries_of_vectors():
    observation_space = spaces.Dict(a=OBS_SPACE, b=spaces.Box(-1, 1, (2,)))
    critic = make(EnsembleCritic, extractor_class=CombinedExtractor, observation_space=observation_space, backbone="simba")
    obs = {"a": 5 + th.randn(200, OBS_DIM), "b": th.rand(200, 2)}
    critic.update_normalization(obs)
    assert isinstance(critic.normalizer, RunningNorm)
    assert critic.encode(obs).shape == (200, OBS_DIM + 2) and critic.encode(obs).mean(0).abs().max() < 1e-4


@pytest.mark.parametrize("backbone", ["plain", "layer_norm", "bro"])
def test_update_normalization_of_the_others_changes_nothing(backbone):
    critic = make(EnsembleCritic, backbone=backbone)
    obs, actions = batch()
    before = critic.evaluate(critic.encode(obs), actions)
    critic.update_normalization(100 * obs)
    assert th.equal(critic.evaluate(critic.encode(obs), actions), before)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_save_load_pickle_and_copy(cls, backbone, tmp_path):
    critic = warmed_up(make(cls, backbone=backbone, n_critics=3, activation_fn=nn.Tanh, share_features_extractor=False))
    obs, actions = batch()
    expected = critic.evaluate(critic.encode(obs), actions)
    critic.save(tmp_path / "critic.pth")
    loaded = cls.load(tmp_path / "critic.pth", device="cpu")
    for twin in (loaded, copy.deepcopy(critic), pickle.loads(pickle.dumps(critic))):
        assert th.equal(twin.evaluate(twin.encode(obs), actions), expected), "in training mode, too"
        # The list of networks must hold the very modules that are registered
        assert twin.q_networks[2] is twin.qf2


@pytest.mark.parametrize("cls", CLASSES)
def test_every_constructor_parameter_is_saved(cls):
    names = set(inspect.signature(cls).parameters)
    assert set(make(cls)._get_constructor_parameters()) == names
    assert set(inspect.signature(EnsembleCritic).parameters) >= set(inspect.signature(ContinuousCritic).parameters)
    assert set(inspect.signature(QuantileCritic).parameters) >= set(inspect.signature(TQCCritic).parameters)


def test_float64_observations():
    observation_space = spaces.Box(-1, 1, (OBS_DIM,), dtype=np.float64)
    critic = make(EnsembleCritic, observation_space=observation_space, backbone="simba")
    obs = th.as_tensor(np.stack([observation_space.sample() for _ in range(B)]))
    assert obs.dtype == th.float64
    critic.update_normalization(obs)
    assert critic.evaluate(critic.encode(obs), batch()[1]).dtype == th.float32


@pytest.mark.parametrize("cls", CLASSES)
def test_bad_arguments(cls):
    with pytest.raises(ValueError, match="n_critics must be at least 1, got 0"):
        make(cls, n_critics=0)
    with pytest.raises(ValueError, match=r"backbone must be one of .*, got 'resnet'"):
        make(cls, backbone="resnet")
    with pytest.raises(ValueError, match="net_arch of backbone 'bro' must be the same width"):
        make(cls, net_arch=(64, 32), backbone="bro")
    with pytest.raises(ValueError, match="n_quantiles must be at least 1, got 0"):
        make(QuantileCritic, n_quantiles=0)
    for dropped in (-1, 5):
        message = rf"top_quantiles_to_drop_per_net must lie in \[0, n_quantiles=5\), got {dropped}"
        with pytest.raises(ValueError, match=message):
            make(QuantileCritic, n_quantiles=5, top_quantiles_to_drop_per_net=dropped)


@pytest.mark.parametrize("features_shape, actions_shape", [((B, 5), (B, 3)), ((B, 1, 5), (B, 2, 3)), ((1, 5), (B, 2, 3))])
def test_bad_shapes(features_shape, actions_shape):
    with pytest.raises(ValueError, match=r"features and actions must have shapes \(B, F\) and \(B, N, A\), got"):
        make(EnsembleCritic).evaluate(th.zeros(features_shape), th.zeros(actions_shape))
