"""What EnergySAC does with an estimate of the entropy, and which estimators it takes."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch as th

from sb3_energy import EnergySAC
from sb3_energy.entropy import ENTROPY_ESTIMATORS, BaseEntropy, DivergenceEntropy, MixtureEntropy
from sb3_energy.refiners import REFINERS
from sb3_energy.schedules import LinearRamp
from sb3_energy.types import EntropyEstimate
from tests.laws import knn_entropy_on_box


def small(policy_kwargs, **kwargs):
    settings = dict(learning_starts=20, batch_size=16, buffer_size=500, seed=0, device="cpu") | kwargs
    return EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[16]) | policy_kwargs, **settings)


def with_its_scale(model):
    """What ``train()`` begins with: the scale of the returns so far, and the temperature in the units of the reward."""
    model.value_units.begin(model)
    model._sync_temperature()
    assert model.critic.value_scale.sigma > 1.0
    return model


def logged(model):
    return model.logger.name_to_value


CHAINS = dict(refiner="langevin", refiner_steps=2, n_particles=4)
ONE_CHAIN = CHAINS | dict(n_particles=1)
POLICIES = {
    "mixture": CHAINS,
    "path": ONE_CHAIN,
    "trace": dict(refiner="svgd", refiner_steps=2, n_particles=4),
    "divergence": dict(refiner="flow", refiner_steps=2),
    "soft_value": CHAINS,
    "smc": CHAINS,
    "base": CHAINS,
}


@dataclass(frozen=True)
class Known:
    """An estimator of the user's own, whose answer is a number."""

    value: float = 1.5
    record: float = 0.25

    def estimate(self, context):
        values = th.full_like(context.base_log_prob, self.value)
        return EntropyEstimate(values, dict(entropy_mine=values[:, 0] * 0.0 + self.record))


@pytest.mark.parametrize("name", sorted(ENTROPY_ESTIMATORS))
@pytest.mark.parametrize("refine_target", [False, True])
def test_training_goes_on_with_every_estimator(name, refine_target):
    model = small(POLICIES[name], entropy_estimator=name, refine_target=refine_target).learn(26)
    assert type(model.entropy_term.estimator) is ENTROPY_ESTIMATORS[name]
    assert model._n_updates == 6 and math.isfinite(model._entropy)
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())


# What is left of an estimate's error: two chains of few steps, kernels of few particles, the noise of a batch of 512
TOLERANCES = dict(base=0.05, soft_value=0.05, smc=0.05, divergence=0.1, mixture=0.15, path=0.15, trace=0.15)


def one_place(name):
    """A model whose transitions all begin and end at one observation, where the Gaussian is narrow."""
    more = dict(entropy_estimator_kwargs=dict(n_proposals=512)) if name == "soft_value" else {}
    few = dict(refiner_kwargs=dict(step_size=0.03)) if name == "trace" else {}  # it counts small steps only
    # At a hundredth of the returns' scale, the default, the critic is so steep that few steps are far from its law
    model = small(POLICIES[name] | few, entropy_estimator=name, ent_coef="auto_1.0_scaled", **more).learn(20)
    buffer = model.replay_buffer
    buffer.observations[:] = buffer.next_observations[:] = 0.3
    with th.no_grad():
        model.actor.mu.weight.zero_(), model.actor.log_std.weight.zero_()
        model.actor.mu.bias.fill_(0.2), model.actor.log_std.bias.fill_(math.log(0.4))
    return with_its_scale(model), th.full((1, 3), 0.3)


@pytest.mark.parametrize("name", sorted(ENTROPY_ESTIMATORS))
def test_the_entropy_in_training_is_that_of_the_actions(name):
    """By distances between 4 000 draws, which no density enters."""
    model, obs = one_place(name)
    if name == "base":
        latent = 0.2 + 0.4 * th.randn(4000, 1, dtype=th.float64)
    else:
        latent = th.atanh(model.policy.sample_actions(obs, 4000)[0].double())
    expected = knn_entropy_on_box(latent)
    model.train(1, batch_size=512)
    assert model._entropy == pytest.approx(expected, abs=TOLERANCES[name])


@pytest.mark.parametrize("refiner", sorted(REFINERS))
def test_the_refiner_has_the_default(refiner):
    model = small(dict(refiner=refiner))
    assert type(model.entropy_term.estimator) is ENTROPY_ESTIMATORS[REFINERS[refiner].estimators[0]]
    assert (model.entropy_term.reverse_drift is None) == (type(model.entropy_term.estimator).__name__ != "PathEntropy")


INVALID = [(refiner, name) for refiner, cls in REFINERS.items() for name in ENTROPY_ESTIMATORS if name not in cls.estimators]


@pytest.mark.parametrize("refiner, name", INVALID)
def test_an_estimator_that_is_not_valid_for_the_refiner_is_refused(refiner, name):
    with pytest.raises(ValueError) as caught:
        small(dict(refiner=refiner), entropy_estimator=name)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300
    assert repr(name) in message and REFINERS[refiner].__name__ in message
    assert all(repr(valid) in message for valid in REFINERS[refiner].estimators)


RAMP = LinearRamp(0.0, 1.0, start=0.5)
REFUSALS = [
    ("mixture", CHAINS | dict(box="reflect"), {}, "'mixture' needs box='tanh'"),
    ("path", ONE_CHAIN | dict(box="reflect"), {}, "'path' needs box='tanh'"),
    ("trace", dict(refiner="svgd", box="reflect"), {}, "'trace' needs box='tanh'"),
    ("path", dict(refiner="langevin"), {}, "'path' needs n_particles=1, .* got 128"),
    ("path", ONE_CHAIN | dict(trust_region=0.5), {}, "'path' needs trust_region=None, got 0.5"),
    ("mixture", CHAINS | dict(refiner_kwargs=dict(noise_scale=0.5)), {}, "'mixture' needs .*noise_scale=1, got 0.5"),
    ("mixture", CHAINS | dict(refiner_kwargs=dict(noise_scale=RAMP)), {}, "'mixture' needs .*noise_scale=1, got LinearRamp"),
    ("path", ONE_CHAIN | dict(refiner_kwargs=dict(noise_scale=0.0)), {}, "'path' needs .*noise_scale=1, got 0.0"),
    ("divergence", dict(refiner="flow"), dict(method="learned"), "method='learned' needs refiner='mean_flow'"),
    ("mixture", CHAINS | dict(refiner_steps=0), {}, "'mixture' needs refiner_steps of at least 1, got 0"),
    ("path", ONE_CHAIN | dict(refiner_steps=0), {}, "'path' needs refiner_steps of at least 1, got 0"),
    ("trace", dict(refiner="svgd", refiner_steps=0), {}, "'trace' needs refiner_steps of at least 1, got 0"),
    ("divergence", dict(refiner="flow", refiner_steps=0), {}, "'divergence' needs refiner_steps of at least 1, got 0"),
]


@pytest.mark.parametrize("name, policy_kwargs, kwargs, match", REFUSALS, ids=lambda value: str(value)[:60])
def test_settings_under_which_an_estimate_would_be_wrong_are_refused(name, policy_kwargs, kwargs, match):
    with pytest.raises(ValueError, match=match) as caught:
        small(policy_kwargs, entropy_estimator=name, entropy_estimator_kwargs=kwargs)
    assert "\n" not in str(caught.value)


def test_walls_are_no_matter_for_who_follows_no_density():
    small(CHAINS | dict(box="reflect"), entropy_estimator="soft_value")


def _noting(targets, td_loss, obs, actions, values):
    targets.append(values.clone())
    return td_loss(obs, actions, values)


@pytest.mark.parametrize("refine_target", [False, True])
def test_a_class_of_the_user_s_own_feeds_the_temperature_and_the_bellman_target(monkeypatch, refine_target):
    """The same seed with two answers: what depends on them differs by what they differ by."""
    seen = {}
    for value in (1.5, -2.5):
        own = dict(entropy_estimator=Known, entropy_estimator_kwargs=dict(value=value))
        model = with_its_scale(small(CHAINS, refine_target=refine_target, ent_coef="auto_0.3", **own).learn(20))
        targets = []
        monkeypatch.setattr(model.critic, "td_loss", partial(_noting, targets, model.critic.td_loss))
        before = model.log_ent_coef.detach().clone()
        th.manual_seed(5)
        np.random.seed(5)
        model.train(1, 16)
        loss = logged(model)["train/ent_coef_loss"]
        assert model._entropy == -value
        assert loss == pytest.approx(-before.item() * (value + model.target_entropy), rel=1e-5)
        # More entropy than the target's lowers the temperature
        assert th.sign(model.log_ent_coef.detach() - before).item() == math.copysign(1.0, value + model.target_entropy)
        seen[value] = targets[0]
    difference = seen[-2.5] - seen[1.5]
    if not refine_target:
        assert (difference == 0.0).all(), "the Gaussian's own action has the Gaussian's own density"
        return
    # r + γ (Q - α log π): Pendulum never terminates
    th.testing.assert_close(difference, th.full_like(difference, model.gamma * 0.3 * 4.0))


def test_what_an_estimator_records_is_logged():
    model = small(CHAINS, entropy_estimator=Known, refine_target=True).learn(24)
    assert logged(model)["train/entropy_mine"] == 0.25


def test_both_bounds_are_logged():
    model = small(CHAINS, entropy_estimator="mixture", entropy_estimator_kwargs=dict(n_chains=8)).learn(24)
    lower, upper = (logged(model)[f"train/entropy_{name}"] for name in ("lower", "upper"))
    assert lower < upper
    model.train(1, 16)
    values = logged(model)
    assert 0.5 * (values["train/entropy_lower"] + values["train/entropy_upper"]) == pytest.approx(model._entropy, abs=1e-4)


def test_the_reverse_drift_learns():
    """On one batch, with everything else held still."""
    model = small(ONE_CHAIN | dict(refiner_kwargs=dict(step_size=0.5)), entropy_estimator="path", learning_rate=3e-3)
    model.learn(21)
    losses = []
    obs = th.as_tensor(np.random.default_rng(0).uniform(-1, 1, (256, 3)), dtype=th.float32)
    for _ in range(200):
        records = {"reverse_loss": []}
        with th.no_grad():
            model.entropy_term.estimate(model.policy, obs, th.zeros(256, 1), n_particles=16, records=records)
        losses += records["reverse_loss"]
    assert len(losses) == 200 and np.mean(losses[-20:]) < np.mean(losses[:20]) - 0.02
    model.train(1, 16)
    assert math.isfinite(logged(model)["train/reverse_loss"])


def same(first, second):
    if isinstance(first, th.Tensor):
        return th.equal(first, second)
    if isinstance(first, dict):
        return set(first) == set(second) and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def test_the_reverse_drift_and_its_optimiser_are_saved(tmp_path):
    model = small(ONE_CHAIN, entropy_estimator="path", refine_target=True).learn(25)
    model.save(tmp_path / "model")
    loaded = EnergySAC.load(tmp_path / "model", env=model.get_env())
    drift = model.entropy_term.reverse_drift
    assert len(drift.optimizer.state_dict()["state"]) > 0
    assert same(drift.state_dict(), loaded.entropy_term.reverse_drift.state_dict())
    assert same(drift.optimizer.state_dict(), loaded.entropy_term.reverse_drift.optimizer.state_dict())
    fresh = small(ONE_CHAIN, entropy_estimator="path", seed=3)
    assert not same(drift.state_dict(), fresh.entropy_term.reverse_drift.state_dict())
    # and it is the loaded one that goes on
    before = {name: value.clone() for name, value in loaded.entropy_term.reverse_drift.state_dict().items()}
    loaded.load_replay_buffer(_saved_buffer(model, tmp_path))
    loaded.set_logger(model.logger)
    loaded.train(1, 16)
    assert not same(before, loaded.entropy_term.reverse_drift.state_dict())


def _saved_buffer(model, folder):
    model.save_replay_buffer(folder / "buffer")
    return folder / "buffer.pkl"


def test_a_schedule_of_the_learning_rate_reaches_the_reverse_drift():
    model = small(ONE_CHAIN, entropy_estimator="path", learning_rate=lambda remaining: 1e-3 * remaining).learn(40)
    rates = {
        group["lr"] for o in (model.entropy_term.reverse_drift.optimizer, model.actor.optimizer) for group in o.param_groups
    }
    assert len(rates) == 1 and rates.pop() < 1e-3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("refine_target", [False, True])
def test_an_estimate_that_is_no_number_stops_training_before_it_changes_anything(value, refine_target):
    own = dict(entropy_estimator=Known, entropy_estimator_kwargs=dict(value=value))
    model = with_its_scale(small(CHAINS, refine_target=refine_target, **own).learn(20))
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    alpha = model.log_ent_coef.detach().clone()
    with pytest.raises(FloatingPointError, match="the entropy by Known is not finite; try") as caught:
        model.train(1, 16)
    assert "\n" not in str(caught.value)
    assert same(before, model.policy.state_dict()) and th.equal(alpha, model.log_ent_coef.detach())


@pytest.mark.parametrize("name", sorted(set(ENTROPY_ESTIMATORS) - {"base"}))
def test_a_diverged_energy_is_never_an_entropy(name):
    model = small(POLICIES[name], entropy_estimator=name, refine_target=True).learn(22)
    broken = model.policy.head if name == "divergence" else model.critic
    with th.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(math.nan)
    before = {key: tensor.clone() for key, tensor in model.actor.state_dict().items()}
    with pytest.raises(FloatingPointError, match=f"{ENTROPY_ESTIMATORS[name].__name__}|non-finite|{name}"):
        model.train(1, 16)
    assert same(before, model.actor.state_dict())


def test_an_infinite_upper_bound_stops_training(monkeypatch):
    model = small(CHAINS, entropy_estimator="mixture").learn(22)
    simulate = type(model.policy).simulate

    def far_apart(*args, **kwargs):
        chains = simulate(model.policy, *args, **kwargs)
        return chains._replace(particles=chains.particles * 1e30)

    monkeypatch.setattr(model.policy, "simulate", far_apart)
    with pytest.raises(FloatingPointError, match="'mixture' found chains"):
        model.train(1, 16)


def test_an_estimator_that_subclasses_one_is_the_user_s_own():
    @dataclass(frozen=True)
    class Mine(BaseEntropy):
        pass

    assert type(small(dict(refiner="mppi"), entropy_estimator=Mine).entropy_term.estimator) is Mine
    for cls in (MixtureEntropy, DivergenceEntropy):
        with pytest.raises(ValueError, match="with MPPI"):  # but a class of the registry is the registry's
            small(dict(refiner="mppi"), entropy_estimator=cls)
