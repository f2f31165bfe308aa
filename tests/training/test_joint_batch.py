"""Both ends of transitions in one batch: statistics, values and losses against batch normalisation by hand."""

import copy

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn

from sb3_energy import PGAC, EnergySAC
from sb3_energy.fast_updates.lean_updates import LeanBatchNormUpdates
from sb3_energy.networks import BatchNorm, running_statistics
from sb3_energy.training.batch_norm_updates import BatchNormUpdates

B = 7
KINDS = {
    "scalar": {},
    "quantile": dict(critic="quantile", n_quantiles=5),
    "categorical": dict(critic="categorical", n_bins=9, support=(-3.0, 3.0)),
}


def make(cls=EnergySAC, policy="MlpPolicy", env="Pendulum-v1", policy_kwargs=None, **kwargs):
    settings = dict(backbone="flash", net_arch=[8, 8], refiner="none") | (policy_kwargs or {})
    if cls is PGAC:
        settings |= dict(refiner="mala", n_particles=4)
    return cls(policy, env, policy_kwargs=settings, **dict(joint_batch=True, seed=1, buffer_size=60, batch_size=16) | kwargs)


def filled(model):
    model.set_logger(Logger(None, []))
    rng, buffer = np.random.default_rng(0), model.replay_buffer
    for i in range(60):
        obs, next_obs = rng.standard_normal((2, 1, 3)).astype(np.float32)
        buffer.add(obs, 3.0 * next_obs + 1.0, rng.uniform(-1, 1, (1, 1)), rng.standard_normal(1), np.array([i % 7 == 0]), [{}])
    return model


def batch():
    generator = th.Generator().manual_seed(0)
    obs, next_obs = th.randn(2, B, 3, generator=generator)
    actions, next_actions = 2.0 * th.rand(2, B, 1, generator=generator) - 1.0
    return ReplayBufferSamples(obs, actions, 3.0 * next_obs + 1.0, th.zeros(B, 1), th.zeros(B, 1)), next_actions


def by_hand(network, x):
    """The flash network in training mode, from its weights alone."""

    def norm(layer, y):
        mean, var = y.mean(0), ((y - y.mean(0)) ** 2).mean(0)
        return layer.weight * (y - mean) / (var + layer.eps).sqrt() + layer.bias

    first, linear, *blocks, rms, head = network
    y = norm(first, x) @ linear.weight.T
    for block in blocks:
        wide, norm1, _, narrow, norm2, _ = block.layers
        y = y + norm(norm2, norm(norm1, y @ wide.weight.T).relu() @ narrow.weight.T).relu()
    y = rms.weight * y / ((y**2).mean(1, keepdim=True) + rms.eps).sqrt()
    return y @ head.weight.T + head.bias


@pytest.mark.parametrize("updates", [BatchNormUpdates, LeanBatchNormUpdates])
@pytest.mark.parametrize("kind", KINDS)
def test_critics_see_both_ends(kind, updates):
    lowest = {} if kind == "quantile" else dict(target_aggregate="min")
    model, (transitions, next_actions) = make(policy_kwargs=KINDS[kind] | lowest), batch()
    critic, target = model.critic, model.critic_target
    for parameter in target.parameters():
        parameter.data += 0.1 * th.randn_like(parameter)
    rows = th.cat(
        [
            th.cat([transitions.observations, transitions.actions], dim=1),
            th.cat([transitions.next_observations, next_actions], dim=1),
        ]
    )
    outputs, targets_outputs = (th.stack([by_hand(q, rows) for q in one.q_networks], dim=1) for one in (critic, target))
    arithmetic = updates(model.actor, critic, target, joint_batch=True)
    critic.set_training_mode(True)
    with running_statistics(critic):
        with th.no_grad():
            values = arithmetic.target_values(transitions, next_actions)
        expected = targets_outputs[B:]
        if kind == "scalar":
            th.testing.assert_close(values, expected.squeeze(-1).min(1, keepdim=True).values, rtol=1e-4, atol=1e-5)
            targets = th.randn(B, 1)
            loss = 0.5 * sum((outputs[:B, i] - targets).square().mean() for i in range(2))
        elif kind == "quantile":
            th.testing.assert_close(values, expected.flatten(1).sort(1).values[:, :6], rtol=1e-4, atol=1e-5)
            loss = None
            targets = th.randn(B, 6)
        else:
            p, z = th.softmax(expected, -1), th.linspace(-3.0, 3.0, 9)
            lower = (p @ z).argmin(1)
            th.testing.assert_close(values, p[th.arange(B), lower], rtol=1e-4, atol=1e-5)
            targets = th.softmax(th.randn(B, 9), 1)
            loss = -(targets.unsqueeze(1) * th.log_softmax(outputs[:B], -1)).sum(-1).mean()
        found = arithmetic.critic_loss(transitions, next_actions, targets)
    if loss is not None:
        th.testing.assert_close(found, loss, rtol=1e-4, atol=1e-5)
        parameters = list(critic.qf0.parameters())
        ours, theirs = th.autograd.grad(found, parameters), th.autograd.grad(loss, parameters)
        for one, other in zip(ours, theirs, strict=True):  # through the statistics of all rows
            th.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    for one in (critic, target):
        th.testing.assert_close(one.qf0[0].running_mean, 0.01 * rows.mean(0))
        th.testing.assert_close(one.qf0[0].running_var, 0.99 + 0.01 * rows.var(0))


def test_the_actor_sees_both_ends_and_next_actions_do_not():
    model, (transitions, _) = make(), batch()
    actor, obs = model.actor, th.cat([transitions.observations, transitions.next_observations])
    latent = by_hand(nn.Sequential(*actor.latent_pi, actor.mu), obs)
    arithmetic = BatchNormUpdates(actor, model.critic, model.critic_target, joint_batch=True)
    actor.set_training_mode(True)
    with running_statistics(actor):
        draw, next_draw = arithmetic.draw(transitions.observations, transitions.next_observations)
        th.testing.assert_close(draw.base.mean, latent[:B], rtol=1e-4, atol=1e-5)
        assert draw.actions.shape == (B, 1) and draw.log_prob.shape == (B, 1) and draw.log_prob.requires_grad
        normal = th.distributions.Normal(draw.base.mean, draw.base.std)
        u = th.atanh(draw.actions)
        expected = normal.log_prob(u) - (1.0 - draw.actions.square() + 1e-6).log()
        th.testing.assert_close(draw.log_prob, expected, rtol=1e-3, atol=1e-3)
        mean, _, _ = actor.get_action_dist_params(transitions.next_observations)
    th.testing.assert_close(next_draw.base.mean, mean.detach())
    assert not next_draw.log_prob.requires_grad
    th.testing.assert_close(actor.latent_pi[0].running_mean, 0.01 * obs.mean(0))
    assert actor.latent_pi[0].num_batches_tracked == 1


@pytest.mark.parametrize("cls", [EnergySAC, PGAC])
@pytest.mark.parametrize("update", ["lean", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_targets_keep_statistics_of_their_own(kind, update, cls):
    model = filled(make(cls, policy_kwargs=KINDS[kind], update=update, tau=0.01))
    model.train(4, 16)
    for ours, theirs in zip(model.critic.modules(), model.critic_target.modules(), strict=True):
        if isinstance(ours, BatchNorm):
            assert ours.num_batches_tracked == theirs.num_batches_tracked == 4
    inner = model.critic.qf0[2].layers[1], model.critic_target.qf0[2].layers[1]
    assert not th.equal(inner[0].running_mean, inner[1].running_mean), "weights differ, and so do statistics"
    th.testing.assert_close(model.critic.qf0[0].running_mean, model.critic_target.qf0[0].running_mean)


def test_targets_follow_by_tau():
    model = filled(make(tau=0.25))
    before = copy.deepcopy(model.critic_target.state_dict())
    model.train(1, 16)
    for name, parameter in model.critic.named_parameters():
        expected = before[name] + 0.25 * (parameter - before[name])
        th.testing.assert_close(model.critic_target.state_dict()[name], expected.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_lean_updates_are_the_references(kind):
    found = []
    for update in ("lean", "reference"):
        model = filled(make(policy_kwargs=KINDS[kind], update=update))
        th.manual_seed(5), np.random.seed(5)
        model.train(5, 16)
        found.append(model.policy.state_dict())
    assert max((found[0][key].double() - found[1][key].double()).abs().max() for key in found[0]) < 1e-5


@pytest.mark.parametrize("cls", [EnergySAC, PGAC])
def test_training_goes_on_from_a_file(cls, tmp_path):
    model = filled(make(cls, policy_kwargs=KINDS["categorical"], actor_delay=2))
    model.train(3, 16)
    model.save(tmp_path / "model")
    twin = filled(cls.load(tmp_path / "model", env=model.env))
    assert twin.joint_batch and twin.actor_delay == 2
    for either in (model, twin):
        th.manual_seed(5), np.random.seed(5)
        either.train(4, 16)
    ours, theirs = model.policy.state_dict(), twin.policy.state_dict()
    assert all(th.equal(ours[key], theirs[key]) for key in ours)


class Normed(BaseFeaturesExtractor):
    """A user's own, with torch's batch norm."""

    def __init__(self, space):
        super().__init__(space, 4)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.BatchNorm1d(4))

    def forward(self, observations):
        return self.layers(observations)


class Flat(BaseFeaturesExtractor):
    """One that learns nothing and keeps statistics: its features are also normalised by SimBa's."""

    def __init__(self, space):
        super().__init__(space, 3)
        self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3, affine=False))

    def forward(self, observations):
        return self.layers(observations)


@pytest.mark.parametrize("shared", [False, True])
def test_a_features_extractors_batch_norm_will_do(shared):
    own = dict(backbone="simba", features_extractor_class=Normed, share_features_extractor=shared)
    model = filled(make(policy_kwargs=own))
    model.train(3, 16)
    counts = {part: part.features_extractor.layers[2].num_batches_tracked.item() for part in (model.actor, model.critic)}
    assert set(counts.values()) == ({6} if shared else {3})
    assert model.critic_target.features_extractor.layers[2].num_batches_tracked == 3


def test_running_statistics_of_observations_are_still_copied():
    model = filled(make(policy_kwargs=dict(backbone="simba", features_extractor_class=Flat)))
    model.train(2, 16)
    ours, theirs = model.critic.normalizer, model.critic_target.normalizer
    assert ours.running_count == theirs.running_count == 32 and th.equal(ours.running_mean, theirs.running_mean)


def test_dictionaries_and_n_steps():
    model = make(
        policy="MultiInputPolicy",
        env=SimpleMultiObsEnv(discrete_actions=False, random_start=False),
        learning_starts=20,
        policy_kwargs=dict(share_features_extractor=True),
    )
    model.learn(24)
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())
    model = make(n_steps=3, learning_starts=20).learn(24)
    assert model._n_updates == 4


def test_what_has_no_batch_norm_is_refused():
    message = "^joint_batch=True needs layers of batch normalisation, such as backbone='flash' has, got backbone='bro'$"
    with pytest.raises(ValueError, match=message):
        make(policy_kwargs=dict(backbone="bro"))
    with pytest.raises(TypeError, match="joint_batch must be"):
        make(joint_batch="yes")


def test_one_row_has_a_neighbour():
    filled(make(batch_size=1)).train(2, 1)
