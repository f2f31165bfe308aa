"""The actor's rarer updates, the bounds of its standard deviation and the target entropy of a standard deviation."""

import math

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import Logger

from sb3_energy import PGAC, EnergySAC
from sb3_energy.schedules import Cosine


def make(cls=EnergySAC, policy_kwargs=None, **kwargs):
    settings = dict(net_arch=[8]) | (dict(refiner="none") if cls is EnergySAC else dict(n_particles=4)) | (policy_kwargs or {})
    model = cls("MlpPolicy", "Pendulum-v1", policy_kwargs=settings, seed=1, **dict(buffer_size=60, batch_size=16) | kwargs)
    model.set_logger(Logger(None, []))
    rng, buffer = np.random.default_rng(0), model.replay_buffer
    for _ in range(60):
        obs, next_obs = rng.standard_normal((2, 1, 3)).astype(np.float32)
        buffer.add(obs, next_obs, rng.uniform(-1, 1, (1, 1)), rng.standard_normal(1), np.zeros(1), [{}])
    return model


def learned(model):
    parts = (model.actor.state_dict(), model.critic.state_dict(), dict(alpha=model.log_ent_coef.detach()))
    return [{name: value.clone() for name, value in part.items()} for part in parts]


def changed(before, after):
    return [any(not th.equal(old[name], new[name]) for name in old) for old, new in zip(before, after, strict=True)]


@pytest.mark.parametrize("update", ["lean", "reference"])
@pytest.mark.parametrize("cls", [EnergySAC, PGAC])
def test_actor_and_temperature_learn_in_every_third_update(cls, update):
    model = make(cls, actor_delay=3, update=update)
    found = []
    for _ in range(7):
        before = learned(model)
        model.train(1, 16)
        found.append(changed(before, learned(model)))
    assert [is_due for is_due, _, _ in found] == [False, False, True, False, False, True, False]
    assert [alpha for _, _, alpha in found] == [is_due for is_due, _, _ in found]
    assert all(critic for _, critic, _ in found)


def test_the_count_goes_on_in_longer_calls_and_from_files(tmp_path):
    model = make(actor_delay=3)
    model.train(4, 16)  # the fourth and the fifth are not due
    model.save(tmp_path / "model")
    twin = EnergySAC.load(tmp_path / "model", env=model.env)
    twin.set_logger(Logger(None, []))
    twin.replay_buffer = model.replay_buffer
    for either in (model, twin):
        before = learned(either)
        either.train(1, 16)
        assert changed(before, learned(either)) == [False, True, False]
        either.train(1, 16)
        assert changed(before, learned(either)) == [True, True, True]


def test_a_delay_of_one_is_sacs_update():
    found = []
    for kwargs in ({}, dict(actor_delay=1)):
        model = make(**kwargs)
        th.manual_seed(3), np.random.seed(3)
        model.train(3, 16)
        found.append(learned(model))
    assert changed(*found) == [False, False, False]


@pytest.mark.parametrize("value, error", [(0, ValueError), (1.5, TypeError), ("2", TypeError)])
def test_refused_delays(value, error):
    with pytest.raises(error, match="actor_delay must be"):
        make(actor_delay=value)


@pytest.mark.parametrize("backbone", ["plain", "layer_norm", "flash"])
@pytest.mark.parametrize("update", ["lean", "reference"])
def test_log_std_is_a_tanh_between_its_bounds(backbone, update):
    low, high = -10.0, 2.0
    policy = make(policy_kwargs=dict(log_std_range=[low, high], backbone=backbone), update=update).policy
    actor, obs = policy.actor.eval(), th.randn(9, 3)
    assert actor.log_std_range == (low, high)
    with th.no_grad():
        raw = actor.log_std(actor.latent_pi(obs))
        mean, log_std, _ = actor.get_action_dist_params(obs)
        th.testing.assert_close(log_std, low + (high - low) * th.sigmoid(2.0 * raw))
        th.testing.assert_close(policy.base(obs).std, log_std.exp())
        actor.log_std.bias.fill_(50.0)
        assert (actor.get_action_dist_params(obs)[1] == high).all()
        actor.log_std.bias.fill_(-50.0)
        assert (actor.get_action_dist_params(obs)[1] == low).all()
    th.testing.assert_close(mean, actor.mu(actor.latent_pi(obs)))


def test_log_std_keeps_a_gradient_where_sb3_clamps():
    actor = make(policy_kwargs=dict(log_std_range=(-20.0, 2.0))).actor
    actor.log_std.bias.data.fill_(2.5)
    actor.get_action_dist_params(th.randn(9, 3))[1].sum().backward()
    assert actor.log_std.bias.grad.abs().min() > 0.0


@pytest.mark.parametrize("refiner", ["none", "mala"])
def test_fast_predictions_and_saved_policies_have_the_bounds(refiner, tmp_path):
    small = {} if refiner == "none" else dict(n_particles=4)
    policy = make(policy_kwargs=dict(log_std_range=(-1.0, 1.5), refiner=refiner) | small).policy
    policy.save(tmp_path / "policy")
    loaded = type(policy).load(tmp_path / "policy")
    obs, found = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32), []
    for one, fast in ((policy, True), (policy, False), (loaded, True)):
        one.fast_predict = fast
        th.manual_seed(2)
        found.append(one.predict(obs)[0])
        assert (one._fast.networks is not None) == (fast or one is policy)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize(
    "value, error, message",
    [
        ((2.0, -10.0), ValueError, r"log_std_range must ascend, got \(2.0, -10.0\)"),
        ((-30.0, 2.0), ValueError, r"log_std_range must lie in SB3's \[-20, 2\]"),
        ((-3.0, float("nan")), ValueError, r"log_std_range\[1\] must be"),
        (2.0, TypeError, "log_std_range must be two numbers"),
    ],
)
def test_refused_bounds(value, error, message):
    with pytest.raises(error, match=message):
        make(policy_kwargs=dict(log_std_range=value))


def test_bounds_are_not_gsdes():
    with pytest.raises(ValueError, match="log_std_range needs use_sde=False"):
        make(policy_kwargs=dict(log_std_range=(-10.0, 2.0)), use_sde=True)


def test_target_entropy_of_a_standard_deviation(tmp_path):
    model = make(target_entropy="auto_0.15")
    normal = th.distributions.Normal(0.0, 0.15)
    assert model.target_entropy == pytest.approx(normal.entropy().item())
    model.save(tmp_path / "model")
    assert EnergySAC.load(tmp_path / "model").target_entropy == model.target_entropy
    six = EnergySAC("MlpPolicy", "MultiGoal-v0", target_entropy="auto_0.15", policy_kwargs=dict(net_arch=[8], refiner="none"))
    assert six.target_entropy == pytest.approx(math.prod(six.action_space.shape) * normal.entropy().item())


@pytest.mark.parametrize("value", ["auto_", "auto_x", "auto_0", "auto_-1", "auto_inf"])
def test_refused_target_entropies(value):
    with pytest.raises(ValueError, match="target_entropy must be") as caught:
        make(target_entropy=value)
    assert "\n" not in str(caught.value)


def test_a_cosine_of_the_learning_rate(tmp_path):
    """SB3 counts the part of the training that remains, as this package's schedules count that of a refinement."""
    model = make(learning_rate=Cosine(3e-4, 1.5e-4))
    for remaining in (1.0, 0.7, 0.5, 0.0):
        model._current_progress_remaining = remaining
        model.train(1, 16)
        expected = 1.5e-4 + 0.5 * 1.5e-4 * (1.0 + math.cos(math.pi * (1.0 - remaining)))
        rates = {group["lr"] for optimizer in model._optimizers() for group in optimizer.param_groups}
        assert len(rates) == 1 and rates.pop() == pytest.approx(expected)
    model.save(tmp_path / "model")
    loaded = EnergySAC.load(tmp_path / "model")
    assert loaded.learning_rate == Cosine(3e-4, 1.5e-4) and loaded.lr_schedule(0.5) == pytest.approx(2.25e-4)
