"""Critics on fixed bins: values, their gradients, targets and what is refused."""

import copy

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import Logger
from torch import nn

from sb3_energy import PGAC, EnergySAC
from sb3_energy.autodiff import energy_and_grad
from sb3_energy.networks import BACKBONES, CategoricalMean
from tests.batches import with_statistics

LOW, HIGH, N_BINS = -3.0, 7.0, 11
KIND = dict(critic="categorical", n_bins=N_BINS, support=(LOW, HIGH))
SUPPORT = th.linspace(LOW, HIGH, N_BINS)
B = 6


def make(cls=EnergySAC, policy_kwargs=None, **kwargs):
    settings = dict(net_arch=[8, 8]) | KIND | (policy_kwargs or {})
    return cls("MlpPolicy", "Pendulum-v1", policy_kwargs=settings, seed=1, **dict(buffer_size=60, batch_size=16) | kwargs)


def filled(model, scale=1.0):
    model.set_logger(Logger(None, []))
    rng, buffer = np.random.default_rng(0), model.replay_buffer
    for i in range(60):
        obs, next_obs = rng.standard_normal((2, 1, 3)).astype(np.float32)
        done = np.array([float(i % 5 == 0)])
        buffer.add(obs, next_obs, rng.uniform(-1, 1, (1, 1)), scale * rng.standard_normal(1), done, [{}])
    return model


def inputs():
    generator = th.Generator().manual_seed(0)
    return th.randn(B, 3, generator=generator), 2.0 * th.rand(B, 1, generator=generator) - 1.0


def spread_out(critic):
    """Logits apart from each other: a network that is initialised gives nearly uniform ones."""
    for q_net in critic.q_networks:
        q_net[-1].weight.data.mul_(10.0)
    return with_statistics(critic)


def distributions(critic, obs, actions):
    """``(C, B, n)`` by the networks themselves."""
    return th.stack([th.softmax(q_net(th.cat([obs, actions], dim=1)), dim=1) for q_net in critic.q_networks])


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_values_are_means(backbone):
    critic, (obs, actions) = spread_out(make(policy_kwargs=dict(backbone=backbone)).critic), inputs()
    expected = distributions(critic, obs, actions) @ SUPPORT
    assert expected.std() > 0.05
    for by_hand in (True, False):
        critic.by_hand = by_hand
        th.testing.assert_close(th.cat(critic(obs, actions), dim=1).T, expected)
        th.testing.assert_close(critic.bind(obs)(actions.unsqueeze(1)).squeeze(-1), expected)
        th.testing.assert_close(critic.evaluate(obs, actions.unsqueeze(1)).squeeze(-1), expected)
        th.testing.assert_close(critic.policy_values(obs, actions).squeeze(1), expected.min(dim=0).values)
        th.testing.assert_close(critic.q1_forward(obs, actions).squeeze(1), expected[0])


@pytest.mark.parametrize("aggregate", ["min", "mean", "lcb"])
@pytest.mark.parametrize("backbone", ["plain", "flash"])
def test_gradients_of_the_energy_are_autograds(backbone, aggregate):
    model = make(policy_kwargs=dict(backbone=backbone, energy_kwargs=dict(aggregate=aggregate)))
    critic, (obs, _) = spread_out(model.critic), inputs()
    energy, actions = model.policy.energy_fn(obs), 2.0 * th.rand(B, 5, 1) - 1.0
    values, gradients = energy_and_grad(energy, actions)
    points = actions.clone().requires_grad_(True)
    rows, flat = obs.repeat_interleave(5, 0), points.reshape(-1, 1)
    q = (distributions(critic, rows, flat) @ SUPPORT).reshape(2, B, 5)
    mean = q.mean(0)
    expected = -dict(min=q.min(0).values, mean=mean, lcb=mean - ((q - mean).square().mean(0) + 1e-12).sqrt())[aggregate]
    th.testing.assert_close(values, expected.detach(), rtol=1e-4, atol=1e-5)
    th.testing.assert_close(gradients, th.autograd.grad(expected.sum(), points)[0], rtol=1e-3, atol=1e-5)


def test_gradient_of_the_actors_objective():
    critic, (obs, actions) = spread_out(make().critic), inputs()
    found = []
    for by_hand in (True, False):
        critic.by_hand, points = by_hand, actions.clone().requires_grad_(True)
        found.append(th.autograd.grad(critic.policy_values(obs, points).sum(), points)[0])
    th.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    assert found[0].abs().min() > 0.0


@pytest.mark.parametrize("aggregate", ["min", "mean"])
def test_targets(aggregate):
    """Each row by itself: the lower critic's distribution, moved and projected by hand."""
    critic, (obs, actions) = make(policy_kwargs=dict(target_aggregate=aggregate)).critic, inputs()
    logits = 3.0 * th.randn(B, 2, N_BINS, generator=th.Generator().manual_seed(0))
    critic.logits = lambda *_: logits
    rewards, dones, log_prob = th.randn(B, 1), th.tensor([[0.0], [1.0]] * 3), th.randn(B, 1)
    with th.no_grad():
        probabilities = critic.target_values(obs, actions)
        targets = critic.td_targets(rewards, dones, 0.9, probabilities, log_prob, th.tensor(0.5))
        members = th.softmax(logits, dim=-1).transpose(0, 1)
    means = members @ SUPPORT
    assert not th.equal(means.argmin(0), means.argmin(0)[0].expand(B)), "each of the two is sometimes the lower one"
    width = (HIGH - LOW) / (N_BINS - 1)
    for b in range(B):
        chosen = members[means[:, b].argmin(), b] if aggregate == "min" else members[:, b].mean(0)
        th.testing.assert_close(probabilities[b], chosen)
        expected = th.zeros(N_BINS)
        for value, probability in zip(SUPPORT, chosen, strict=True):
            moved = rewards[b, 0] + (1.0 - dones[b, 0]) * 0.9 * (value - 0.5 * log_prob[b, 0])
            place = (min(max(moved.item(), LOW), HIGH) - LOW) / width
            for i in range(N_BINS):
                expected[i] += max(0.0, 1.0 - abs(place - i)) * probability
        th.testing.assert_close(targets[b], expected, atol=1e-5, rtol=1e-4)
    records = critic.target_records(targets)
    assert records["outer_bins"].item() == pytest.approx((targets[:, 0] + targets[:, -1]).mean().item())


def test_the_loss_is_the_cross_entropy_to_the_target():
    critic, (obs, actions) = spread_out(make().critic), inputs()
    targets = th.softmax(th.randn(B, N_BINS), dim=1)
    expected = -(targets * distributions(critic, obs, actions).log()).sum(-1).mean()
    gradients = []
    for by_hand in (True, False):
        critic.by_hand = by_hand
        loss = critic.td_loss(obs, actions, targets)
        th.testing.assert_close(loss, expected)
        gradients.append(th.autograd.grad(loss, list(critic.qf0.parameters())))
    for ours, theirs in zip(*gradients, strict=True):
        th.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_it_learns_the_distribution_of_rewards():
    """Where every transition ends its episode, the distribution is that of the reward: here of two numbers on bins."""
    model = make(policy_kwargs=dict(refiner="none", net_arch=[16]), gamma=0.9, learning_rate=1e-2)
    model.set_logger(Logger(None, []))
    rng = np.random.default_rng(0)
    for i in range(60):
        obs = np.zeros((1, 3), np.float32)
        model.replay_buffer.add(obs, obs, rng.uniform(-1, 1, (1, 1)), np.array([[-1.0, 4.0, 4.0][i % 3]]), np.ones(1), [{}])
    model.train(400, 60)
    with th.no_grad():
        found = distributions(model.critic, th.zeros(50, 3), 2.0 * th.rand(50, 1) - 1.0).mean(dim=(0, 1))
    assert found[2].item() == pytest.approx(1 / 3, abs=0.1) and found[7].item() == pytest.approx(2 / 3, abs=0.1)
    assert model.logger.name_to_value["train/outer_bins"] < 1e-3


@pytest.mark.parametrize("backbone", ["layer_norm", "flash"])
@pytest.mark.parametrize("cls", [EnergySAC, PGAC])
def test_training_goes_on_from_a_file(cls, backbone, tmp_path):
    model = filled(make(cls, dict(backbone=backbone, n_particles=4)))
    model.train(3, 16)
    assert 0.0 < model.logger.name_to_value["train/outer_bins"] < 1.0
    model.save(tmp_path / "model")
    twin = filled(cls.load(tmp_path / "model", env=model.env))
    assert twin.critic.n_bins == N_BINS and twin.critic.support == (LOW, HIGH)
    for either in (model, twin):
        either._update_index = 0
        th.manual_seed(5), np.random.seed(5)
        either.train(4, 16)
    ours, theirs = model.policy.state_dict(), twin.policy.state_dict()
    assert all(th.equal(ours[key], theirs[key]) for key in ours)
    obs = np.zeros((2, 3), np.float32)
    assert np.array_equal(model.predict(obs, deterministic=True)[0], twin.predict(obs, deterministic=True)[0])


@pytest.mark.parametrize("update", ["lean", "reference"])
@pytest.mark.parametrize("backbone", ["plain", "flash"])
def test_bins_in_units_of_the_return(backbone, update):
    """Rewards times 64, a power of two, change no bit of what is learned, and multiply values."""
    found = []
    for scale in (1.0, 64.0):
        scaled = dict(support=None, value_scale="auto", backbone=backbone, refiner="none")
        model = filled(make(policy_kwargs=scaled, update=update), scale)
        th.manual_seed(5), np.random.seed(5)
        model.train(3, 16), model.train(3, 16)
        found.append(model)
    one, other = found
    assert other.critic.value_scale.sigma == 64.0 * one.critic.value_scale.sigma > 0.0
    assert one.critic.support == (-5.0, 5.0) and one.critic.mean.support[0] == -5.0
    ours, theirs = one.critic.qf0.state_dict(), other.critic.qf0.state_dict()
    assert all(th.equal(ours[name], theirs[name]) for name in ours)
    obs, actions = inputs()
    one.policy.set_training_mode(False), other.policy.set_training_mode(False)
    with th.no_grad():
        values = th.cat(one.critic(obs, actions), dim=1)
        assert th.equal(64.0 * values, th.cat(other.critic(obs, actions), dim=1))
        expected = one.critic.value_scale.sigma * distributions(one.critic, obs, actions) @ th.linspace(-5.0, 5.0, N_BINS)
        th.testing.assert_close(values.T, expected)
        th.testing.assert_close(one.critic.bind(obs)(actions.unsqueeze(1)).squeeze(-1), expected)
    lowest = expected.min(0).values
    np.testing.assert_allclose(one.policy.q_values(obs.numpy(), actions.numpy()), lowest, rtol=1e-4, atol=1e-5)
    assert one.policy._fast.networks is not None


def test_targets_in_units_of_the_return():
    critic = make(policy_kwargs=dict(support=(-2.0, 2.0), n_bins=5, value_scale="auto")).critic
    critic.value_scale.sigma.fill_(10.0)
    probabilities = th.tensor([[0.0, 0.0, 0.0, 1.0, 0.0]])  # a next return of 10
    arguments = th.tensor([[5.0]]), th.tensor([[0.0]]), 0.5, probabilities, th.tensor([[2.0]]), th.tensor(1.0)
    # 5 + 0.5 (10 - 2) = 9, of which 10 has nine tenths
    th.testing.assert_close(critic.td_targets(*arguments), th.tensor([[0.0, 0.0, 0.1, 0.9, 0.0]]))


def test_the_scale_moves_values_and_leaves_the_bins():
    model = filled(make(policy_kwargs=dict(support=None, value_scale="auto", refiner="none")))
    model.train(1, 16)
    sigma, head = model.critic.value_scale.sigma.item(), model.critic.qf0[-1].weight.clone()
    model.replay_buffer.rewards[:] *= 100.0
    model.value_units.returns.observe(np.array([500.0 * sigma]), np.array([True]), 0.99)
    model.value_units.begin(model)
    assert model.critic.value_scale.sigma.item() > 50.0 * sigma
    assert th.equal(model.critic.qf0[-1].weight, head) and model.critic_target.value_scale.sigma > 50.0 * sigma


@pytest.mark.parametrize("backbone", ["plain", "flash"])
def test_lean_updates_are_the_references(backbone):
    found = []
    for update in ("lean", "reference"):
        model = filled(make(policy_kwargs=dict(backbone=backbone, refiner="none"), update=update))
        th.manual_seed(5), np.random.seed(5)
        model.train(5, 16)
        found.append(model.policy.state_dict())
    assert max((found[0][key].double() - found[1][key].double()).abs().max() for key in found[0]) < 1e-5


@pytest.mark.parametrize("refiner", ["none", "mala", "langevin"])
@pytest.mark.parametrize("backbone", ["plain", "flash"])
def test_fast_predictions_are_torchs(backbone, refiner):
    model = make(policy_kwargs=dict(backbone=backbone, refiner=refiner) | ({} if refiner == "none" else dict(n_particles=4)))
    policy, (obs, actions) = model.policy, inputs()
    spread_out(policy.critic), with_statistics(policy.actor)
    for deterministic in (True, False):
        th.manual_seed(3)
        fast, _ = policy.predict(obs.numpy(), deterministic=deterministic)
        values = policy.q_values(obs.numpy(), actions.numpy())
        assert policy._fast.networks is not None, "numpy has done it"
        th.manual_seed(3)
        with policy.torch_predict():
            slow, _ = policy.predict(obs.numpy(), deterministic=deterministic)
            np.testing.assert_allclose(values, policy.q_values(obs.numpy(), actions.numpy()), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(fast, slow, rtol=1e-3, atol=1e-4)


def test_hooks_see_logits_and_change_what_is_learned():
    model = filled(make(policy_kwargs=dict(refiner="none")))
    shapes = []
    model.critic.qf0.register_forward_hook(lambda module, given, output: shapes.append(output.shape) or 0.0 * output)
    before = copy.deepcopy(model.critic.state_dict())
    model.train(1, 16)
    assert set(shapes) == {(16, N_BINS)}
    after = model.critic.state_dict()
    assert all(th.equal(before[name], after[name]) for name in before if name.startswith("qf0"))
    assert any(not th.equal(before[name], after[name]) for name in before if name.startswith("qf1"))


def test_non_finite_numbers_stop_training():
    model = filled(make(policy_kwargs=dict(refiner="none")))
    model.critic_target.qf0[-1].bias.data.fill_(float("nan"))
    before = copy.deepcopy(model.critic.state_dict())
    with pytest.raises(FloatingPointError, match="critic_loss is nan"):
        model.train(1, 16)
    assert all(th.equal(before[name], value) for name, value in model.critic.state_dict().items())


def test_the_layer():
    layer = CategoricalMean(-1.0, 1.0, 5)
    assert repr(layer) == "CategoricalMean(-1 to 1, n_bins=5)" and list(layer.parameters()) == []
    assert isinstance(layer, nn.Module) and layer(th.zeros(3, 4, 5)).shape == (3, 4, 1)


REFUSED = [
    (dict(support=None, value_scale="none"), ValueError, r"^critic='categorical' needs .*'auto', or .* got 'none' and None$"),
    (dict(support=None, refiner="none", backbone="plain"), ValueError, r"^critic='categorical' needs .* got None and None$"),
    (dict(support=(1.0, 1.0)), ValueError, r"support must ascend, got \(1.0, 1.0\)"),
    (dict(support=(0.0, float("inf"))), ValueError, r"support\[1\] must be"),
    (dict(support=3.0), TypeError, "support must be two numbers"),
    (dict(n_bins=1), ValueError, "n_bins must be at least 2"),
    (dict(n_quantiles=5), ValueError, "n_quantiles and top_quantiles_to_drop_per_net need critic='quantile'"),
    (dict(critic="scalar", support=None), ValueError, "n_bins and support need critic='categorical'"),
    (dict(critic="quantile", n_bins=None), ValueError, "n_bins and support need critic='categorical'"),
]


@pytest.mark.parametrize("kwargs, error, message", REFUSED)
def test_refused(kwargs, error, message):
    with pytest.raises(error, match=message) as caught:
        make(policy_kwargs=kwargs)
    assert "\n" not in str(caught.value)
