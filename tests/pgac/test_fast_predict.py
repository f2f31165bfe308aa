"""A policy with a potential predicts fast, too: SB3's numbers, whatever has happened to its potential before."""

import copy

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_energy import PGAC
from sb3_energy.energies import GuidedPotential
from sb3_energy.pgac.potential_policy import PotentialPolicy
from tests.policies.fast_policies import OBS, check_equal, is_fast, make_policy, predictions
from tests.policies.test_fast_predict_use import messages


def make(**kwargs):
    policy = make_policy(cls=PotentialPolicy, **kwargs)
    with th.no_grad():
        policy.temperature.fill_(1.0)
        for parameter in policy.potential.parameters():  # a new one is 0 everywhere
            parameter.add_(0.1 * th.randn_like(parameter))
        policy.q_scale.spread.fill_(0.7)
    return policy


OPTIONS = {
    "defaults": dict(),
    "without a test": dict(refiner="langevin"),
    "one proposal": dict(n_particles=1),
    "one proposal, without a test": dict(n_particles=1, refiner="langevin"),
    "a late start of the noise": dict(transport_time=0.7),
    "squashed, from the base": dict(box="tanh", initial_particles="base"),
    "from a normal": dict(initial_particles="normal"),
    "from the box": dict(initial_particles="uniform"),
    "preconditioned": dict(precondition=True),
    "one descent": dict(deterministic_particles=1),
    "transport alone": dict(transport_time=1.0),
    "trust region": dict(trust_region=0.1),
    "potential alone": dict(energy="potential"),
    "not guided": dict(energy_kwargs=dict(guidance=0.0)),
    "lowest critic, not normalised": dict(energy_kwargs=dict(aggregate="min", normalize_q=False, guidance=2.0)),
    "lower bound": dict(energy_kwargs=dict(aggregate="lcb", coefficient=0.5, temperature=0.3)),
    "another network": dict(potential_kwargs=dict(net_arch=[16], layer_norm=True, activation_fn=nn.Mish)),
    "quantiles": dict(critic="quantile", backbone="simba", energy_kwargs=dict(temperature=0.5)),
    "plain": dict(backbone="plain", n_critics=1),
    "mppi": dict(refiner="mppi", n_particles=8, refiner_steps=2),
}


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_the_same_numbers(name, deterministic):
    policy = make(**(dict(n_particles=6) | OPTIONS[name]))
    for obs in (OBS[0], OBS[:1], OBS):
        check_equal(policy, obs, deterministic)


def test_a_standard_normal_is_not_the_actor():
    starts = [make(n_particles=4, initial_particles=name, sampling_time=0.01) for name in ("normal", "base")]
    normal, base = (check_equal(policy, OBS, deterministic=False)[0] for policy in starts)
    assert np.abs(normal - base).max() > 0.1


def learned(policy):
    with th.no_grad():
        for parameter in policy.potential.parameters():
            parameter.mul_(1.5)


def with_other_memory(policy):
    for parameter in policy.potential.parameters():
        parameter.data = parameter.data * 1.5


def scaled(policy):
    policy.q_scale.spread.fill_(0.05)


def with_another_potential(policy):
    policy.potential = copy.deepcopy(policy.potential)
    learned(policy)


def with_another_scale(policy):
    policy.q_scale = copy.deepcopy(policy.q_scale)
    scaled(policy)


def with_another_energy(policy):
    policy.energy = GuidedPotential(guidance=3.0)


def with_another_start(policy):
    policy.starts_normal = True


CHANGES = [
    learned, with_other_memory, scaled, with_another_potential, with_another_scale, with_another_energy, with_another_start
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_stale(change):
    policy = make(n_particles=4)
    before = check_equal(policy, OBS, deterministic=False)
    change(policy)
    after = check_equal(policy, OBS, deterministic=False)
    assert np.abs(before[0] - after[0]).max() > 1e-4


@pytest.mark.parametrize("kwargs", [dict(spectral_norm=True), dict(activation_fn=nn.GELU)], ids=["spectral", "gelu"])
def test_potentials_that_are_not_known_take_the_slow_path(never, kwargs):
    assert make(potential_kwargs=kwargs).predict(OBS)[0].shape == (9, 3)


@pytest.mark.parametrize("name", ["start_base", "networks", "refine", "base", "energy_fn"])
def test_whoever_overrides_a_part_takes_the_slow_path(never, name):
    def override(self, *args, **kwargs):
        return getattr(PotentialPolicy, name)(self, *args, **kwargs)

    policy = make_policy(cls=type("MyPolicy", (PotentialPolicy,), {name: override}), n_particles=4)
    assert policy.predict(OBS)[0].shape == (9, 3)
    policy = make(n_particles=4)
    setattr(policy, name, getattr(policy, name))
    assert policy.predict(OBS)[0].shape == (9, 3)


def test_a_subclass_that_overrides_nothing_is_fast():
    policy = make_policy(cls=type("MyPolicy", (PotentialPolicy,), {}), n_particles=4)
    check_equal(policy, OBS, deterministic=False)


def test_the_potential_is_called_where_somebody_wants_to_see_it(monkeypatch):
    policy, calls = make(n_particles=4), []
    policy.predict(OBS)
    handle = policy.potential.network[1].register_forward_hook(lambda *args: calls.append(1))
    policy.predict(OBS)
    assert calls and policy._fast.retry > 0  # it is not looked at again at each prediction
    handle.remove()
    policy, calls = make(n_particles=4), []
    policy.predict(OBS)
    bind = policy.potential.bind
    monkeypatch.setattr(policy.potential, "bind", lambda *args: calls.append(1) or bind(*args))
    policy.predict(OBS)
    assert calls


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("part", ["potential", "critic", "q_scale"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused_by_the_same_words(part, deterministic, value):
    policy = make(n_particles=4)
    policy.predict(OBS)
    with th.no_grad():
        if part == "q_scale":
            policy.q_scale.spread.fill_(0.0 if value == np.inf else value)
        else:
            network = policy.potential.network if part == "potential" else policy.critic.q_networks[1]
            network[-1].bias.fill_(value)
    fast, slow = messages(policy, OBS[:3], deterministic)
    assert fast == slow and is_fast(policy)


def test_copies_have_arrays_of_their_own():
    policy = make(n_particles=4)
    expected, _ = predictions(policy, OBS, deterministic=True, fast=True)
    twin = copy.deepcopy(policy)
    assert is_fast(policy) and not is_fast(twin)
    learned(policy)
    np.testing.assert_allclose(check_equal(twin, OBS, deterministic=True)[0], expected[0], atol=1e-6)


def trained(**kwargs):
    settings = dict(learning_starts=5, buffer_size=50, seed=0, device="cpu")
    return PGAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[8]) | kwargs, **settings).learn(20)


def test_training_acts_fast():
    assert is_fast(trained().policy)


def test_what_was_saved_predicts_fast(tmp_path):
    model, obs = trained(deterministic_particles=1), np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    model.policy.q_scale.spread.fill_(0.7)  # a young critic's is so small that rounding alone moves actions
    model.save(tmp_path / "model")
    policy = PGAC.load(tmp_path / "model", device="cpu").policy
    for deterministic in (True, False):
        expected, _ = predictions(model.policy, obs, deterministic, fast=True)
        np.testing.assert_array_equal(check_equal(policy, obs, deterministic), expected)


def test_of_descents_that_end_equally_low_either_may_win():
    policy = trained().policy
    obs = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    found = []
    for fast in (True, False):
        policy.fast_predict = fast
        actions = np.concatenate([policy.predict(obs[k : k + 4], deterministic=True)[0] for k in range(0, 64, 4)])
        with th.no_grad():
            found.append(policy.energy_fn(th.as_tensor(obs))(th.as_tensor(policy.scale_action(actions))[:, None]).numpy())
    assert is_fast(policy)
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-4)


def test_another_scale_takes_the_slow_path(never):
    policy = make(n_particles=4)
    policy.q_scale.__class__ = type("MyScale", (type(policy.q_scale),), {})
    assert policy.predict(OBS)[0].shape == (9, 3)


def test_a_scale_that_somebody_differentiates():
    policy = make(n_particles=4)
    policy.q_scale.spread.requires_grad_(True)
    check_equal(policy, OBS, deterministic=False)
