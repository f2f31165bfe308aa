"""The fast ``predict`` gives SB3's numbers and draws what SB3's draws, whatever has happened to the policy before."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_energy.energies import QEnergy
from sb3_energy.policies.refined_policy import RefinedPolicy
from sb3_energy.schedules import LinearRamp, Polynomial
from tests.policies.fast_policies import OBS, REFINERS, check_equal, is_fast, make_policy


class OwnEnergy:
    def bind(self, networks, obs):
        return lambda actions: actions.square().sum(-1)


PARTS = {
    "backbone": ["plain", "layer_norm", "simba", "bro"],
    "critic": ["scalar", "quantile"],
    "box": ["tanh", "reflect"],
    "initial_particles": ["base", "uniform", "mixture"],
}


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("critic", PARTS["critic"])
@pytest.mark.parametrize("backbone", PARTS["backbone"])
def test_the_same_numbers_without_a_refiner(backbone, critic, deterministic):
    policy = make_policy(refiner="none", backbone=backbone, critic=critic)
    for obs in (OBS[0], OBS[:3]):
        check_equal(policy, obs, deterministic)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("aggregate", ["mean", "min", "lcb"])
@pytest.mark.parametrize("refiner", sorted(set(REFINERS) - {"none"}))
def test_the_same_numbers(refiner, aggregate, deterministic):
    for values in itertools.product(*PARTS.values()):
        kwargs = REFINERS[refiner] | dict(zip(PARTS, values, strict=True)) | dict(energy_kwargs=dict(aggregate=aggregate))
        policy = make_policy(**kwargs)
        for obs in (OBS[0], OBS[:3]):
            check_equal(policy, obs, deterministic)


OPTIONS = {
    "no precondition": dict(precondition=False),
    "no steps": dict(refiner_steps=0),
    "many steps": dict(refiner_steps=12, refiner_kwargs=dict(step_size=0.3)),
    "gradient norm": dict(refiner_kwargs=dict(max_grad_norm=0.2, max_displacement=None)),
    "displacement": dict(refiner_kwargs=dict(max_displacement=0.005)),
    "schedules": dict(refiner="langevin", refiner_kwargs=dict(step_size=Polynomial(0.1, 0.01), noise_scale=LinearRamp())),
    "no noise": dict(refiner="langevin", refiner_kwargs=dict(noise_scale=0.0)),
    "a sequence": dict(refiner=["langevin", "mala"], refiner_steps=[2, 3], refiner_kwargs=[dict(noise_scale=0.0), None]),
    "another bound in a sequence": dict(refiner=["langevin", "mala"], refiner_kwargs=[dict(max_displacement=0.1), None]),
    "one descent": dict(deterministic_particles=1),
    "more descents": dict(deterministic_particles=7, box="reflect"),
    "trust region": dict(trust_region=0.01),
    "trust region, reflected": dict(trust_region=0.01, box="reflect"),
    "coefficient": dict(energy_kwargs=dict(aggregate="lcb", coefficient=0.5)),
    "one critic": dict(n_critics=1),
    "three critics": dict(n_critics=3, energy_kwargs=dict(aggregate="min")),
    "shared features": dict(share_features_extractor=True),
    "elites": dict(refiner="mppi", n_particles=12, refiner_kwargs=dict(n_elites=3, temperature=0.5)),
    "all elites": dict(refiner="mppi", n_particles=12, refiner_kwargs=dict(n_elites=20)),
    "widths": dict(refiner="mppi", n_particles=12, refiner_kwargs=dict(min_std=0.3, max_std=0.4)),
    "quasi-random": dict(refiner="mppi", n_particles=12, refiner_kwargs=dict(quasi_random=True)),
    "one candidate": dict(refiner="mppi", n_particles=1),
    "no rounds": dict(refiner="mppi", n_particles=12, refiner_steps=0),
}


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_the_same_numbers_with_options(name, deterministic):
    policy = make_policy(**(dict(n_particles=4) | OPTIONS[name]))
    for obs in (OBS[0], OBS[:1], OBS):
        check_equal(policy, obs, deterministic)


@pytest.mark.parametrize(
    "obs", [OBS[0].astype(np.float64), OBS[:4, ::-1], np.asfortranarray(OBS)], ids=["d", "view", "fortran"]
)
def test_arrays_of_other_kinds(obs):
    check_equal(make_policy(n_particles=1), obs, deterministic=True)


def test_spaces_of_several_axes():
    policy = make_policy(spaces.Box(-1.0, 1.0, (2, 3)), spaces.Box(-2.0, 2.0, (3, 2), np.float64), n_particles=2)
    for obs in (np.ones((2, 3), np.float32), np.ones((5, 2, 3), np.float32)):
        check_equal(policy, obs, deterministic=False)


def test_refining_does_something():
    policy = make_policy(n_particles=1)
    refined, _ = policy.predict(OBS, deterministic=True)
    with policy.unrefined():
        base = check_equal(policy, OBS, deterministic=True)[0]
        check_equal(policy, OBS, deterministic=False)
    assert np.abs(refined - base).max() > 1e-3


def trained(policy):
    optimizer = th.optim.Adam(policy.parameters(), lr=0.01)
    (policy.actor(th.as_tensor(OBS)).sum() + policy.critic(th.as_tensor(OBS), th.zeros(9, 3))[0].sum()).backward()
    optimizer.step()


def moved(policy):
    for parameter in policy.parameters():
        parameter.data = parameter.data * 1.1


def loaded(policy):
    policy.load_state_dict({name: 1.2 * value for name, value in policy.state_dict().items()})


def cooled(policy):
    policy.temperature.fill_(0.05)


def with_another_actor(policy):
    policy.actor = make_policy(n_particles=4, log_std_init=-1.0).actor
    policy.actor.mu.bias.data.add_(0.5)


def with_another_refinement(policy):
    policy.refinement = make_policy(refiner="mppi", n_particles=8).refinement


def with_another_energy(policy):
    policy.energy = QEnergy("min")


def with_another_critic(policy):
    policy.critic.q_networks[1] = copy.deepcopy(policy.critic.q_networks[0])


CHANGES = [
    trained, moved, loaded, cooled, with_another_actor, with_another_refinement, with_another_energy, with_another_critic
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_stale(change):
    policy = make_policy(n_particles=4)
    before = check_equal(policy, OBS, deterministic=False)
    change(policy)
    after = check_equal(policy, OBS, deterministic=False)
    assert np.abs(before[0] - after[0]).max() > 1e-4


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))], ids=["copy", "pickle"])
def test_copies_have_arrays_of_their_own(copied):
    policy = make_policy(n_particles=4, box="reflect")
    expected = check_equal(policy, OBS, deterministic=True)
    policy.fast_predict = True
    twin = copied(policy)
    assert not is_fast(twin)
    moved(policy)
    np.testing.assert_allclose(check_equal(twin, OBS, deterministic=True)[0], expected[0], atol=1e-6)


def test_nothing_of_it_is_saved(tmp_path):
    policy = make_policy(n_particles=4)
    keys, arguments = set(policy.state_dict()), set(policy._get_constructor_parameters())
    expected = check_equal(policy, OBS, deterministic=True)
    assert set(policy.state_dict()) == keys and set(policy._get_constructor_parameters()) == arguments
    policy.save(str(tmp_path / "policy"))
    loaded_policy = RefinedPolicy.load(str(tmp_path / "policy"), device="cpu")
    np.testing.assert_allclose(check_equal(loaded_policy, OBS, deterministic=True)[0], expected[0], atol=1e-6)


@pytest.mark.parametrize("deterministic", [True, False])
def test_sums_of_energies(deterministic):
    energy = dict(terms=["q", ("q", dict(aggregate="min"))], weights=[0.7, 2.0])
    check_equal(make_policy(n_particles=4, energy="composite", energy_kwargs=energy), OBS, deterministic)


def test_a_sum_with_an_unknown_term_takes_the_slow_path(never):
    policy = make_policy(n_particles=4, energy=0.5 * QEnergy() + OwnEnergy())
    assert policy.predict(OBS)[0].shape == (9, 3)
