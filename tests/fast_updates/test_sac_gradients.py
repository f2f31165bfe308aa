"""Derivatives of SAC's losses by hand, against autograd on the same formulas."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn

from sb3_energy.fast_updates.lean_updates import LeanUpdates
from sb3_energy.fast_updates.sac_gradients import SACGradients
from sb3_energy.losses import actor_loss, temperature_loss
from sb3_energy.policies.refined_policy import RefinedPolicy
from tests.batches import ALONE

SPACE, ACTIONS, B = spaces.Box(-1.0, 1.0, (5,)), spaces.Box(-2.0, 1.0, (3,), dtype=np.float64), 40
ENT_COEF = th.tensor([0.3])


def make(**kwargs):
    th.manual_seed(0)
    settings = dict(net_arch=[16, 16], refiner="none") | kwargs
    policy = RefinedPolicy(SPACE, ACTIONS, lambda _: 1e-3, **settings).double()
    for network in (policy.actor, policy.critic):  # SB3's preprocessing makes 32-bit numbers of everything
        network.extract_features = lambda obs, extractor: obs
    return policy


def gradients(module):
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    module.zero_grad()
    return found


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        th.testing.assert_close(ours[name], gradient, rtol=1e-6, atol=1e-9 * gradient.abs().max().item())


def observations():
    return th.randn(2, B, 5, dtype=th.float64, generator=th.Generator().manual_seed(1))


@pytest.mark.parametrize("shift", [0.0, -20.0, 2.0])
@pytest.mark.parametrize("n_critics", [1, 2, 5])
@pytest.mark.parametrize("backbone", ALONE)
def test_actor(backbone, n_critics, shift):
    """Logarithms of standard deviations around a bound of theirs, so that some are clamped."""
    policy = make(backbone=backbone, n_critics=n_critics)
    actor, critic, (obs, next_obs) = policy.actor, policy.critic, observations()
    with th.no_grad():
        actor.log_std.bias.add_(shift), actor.log_std.weight.mul_(5.0)
        raw = actor.log_std(actor.latent_pi(actor.extract_features(obs, actor.features_extractor)))
    assert shift == 0.0 or 0.2 < ((raw < -20.0) | (raw > 2.0)).double().mean() < 0.8
    by_hand = SACGradients.of(policy)
    th.manual_seed(2)
    draws = by_hand.draw(obs, next_obs)
    loss = by_hand.actor_loss(obs, draws[0], ENT_COEF)
    ours = gradients(actor)
    actor.by_hand = critic.by_hand = False
    policy.critic.requires_grad_(False)
    th.manual_seed(2)
    actor.by_hand = True  # the same formula for the density: SB3's loses small noise beside a mean
    expected = actor.draw(obs, next_obs)
    for draw, other in zip(draws, expected, strict=True):
        for part, value in ((draw.actions, other.actions), (draw.log_prob, other.log_prob), (draw.base.std, other.base.std)):
            th.testing.assert_close(part, value)
    theirs = actor_loss(expected[0].log_prob, critic.policy_values(obs, expected[0].actions), ENT_COEF)
    theirs.backward()
    th.testing.assert_close(loss, theirs.detach())
    assert_close(ours, gradients(actor))


@pytest.mark.parametrize("n_critics", [1, 3])
@pytest.mark.parametrize("backbone", ALONE)
def test_critics(backbone, n_critics):
    policy, (obs, _) = make(backbone=backbone, n_critics=n_critics), observations()
    actions, targets = th.rand(B, 3, dtype=th.float64), th.randn(B, 1, dtype=th.float64)
    batch = ReplayBufferSamples(obs, actions, obs, targets, targets)
    loss = SACGradients.of(policy).critic_loss(batch, actions, targets)
    ours = gradients(policy.critic)
    policy.critic.by_hand = False
    theirs = policy.critic.td_loss(obs, actions, targets)
    theirs.backward()
    th.testing.assert_close(loss, theirs.detach())
    assert_close(ours, gradients(policy.critic))


def test_temperature():
    log_ent_coef, log_prob = th.tensor([-0.7], requires_grad=True), th.randn(B, 1)
    loss = LeanUpdates(None, None, None).temperature_loss(log_ent_coef, log_prob, -3.0)
    ours, log_ent_coef.grad = log_ent_coef.grad, None
    theirs = temperature_loss(log_ent_coef, log_prob, -3.0)
    theirs.backward()
    th.testing.assert_close(loss, theirs.detach())
    th.testing.assert_close(ours, log_ent_coef.grad)


class Learned(FlattenExtractor):
    def __init__(self, space):
        super().__init__(space)
        self.scale = nn.Parameter(th.ones(()))


@pytest.mark.parametrize(
    "kwargs",
    [dict(features_extractor_class=Learned), dict(critic="quantile"), dict(use_sde=True), dict(activation_fn=nn.PReLU)],
    ids=["learned features", "quantiles", "gSDE", "unknown layer"],
)
def test_what_is_left_to_autograd(kwargs):
    policy = make(**kwargs)
    assert SACGradients.of(policy) is None


def test_replaced_losses_are_asked():
    policy = make()
    policy.critic.td_loss = lambda obs, actions, targets: targets.sum()
    assert SACGradients.of(policy) is None
