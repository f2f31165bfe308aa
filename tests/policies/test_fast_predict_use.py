"""The fast ``predict`` is not taken where something is not known, and fails as the slow one does."""

import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_energy import EnergySAC
from sb3_energy.energies import QEnergy
from sb3_energy.policies.fast_predict.fast_predict import MAX_ROWS, RETRY
from sb3_energy.policies.refined_policy import RefinedPolicy
from sb3_energy.refiners import MPPI, Langevin, MetropolisAdjustedLangevin, RefinerSequence
from sb3_energy.refiners.metropolis import MetropolisChain
from tests.policies.fast_policies import OBS, REFINERS, check_equal, is_fast, make_policy, predictions


class MyLangevin(Langevin):
    pass


class MyMPPI(MPPI):
    pass


class MyEnergy(QEnergy):
    pass


SLOW = {
    "gelu": dict(activation_fn=nn.GELU),
    "user's langevin": dict(refiner=MyLangevin),
    "user's mppi": dict(refiner=MyMPPI),
    "user's energy": dict(energy=MyEnergy),
    "svgd": dict(refiner="svgd"),
    "flow": dict(refiner="flow"),
    "tolerance": dict(tolerance=0.1),
}


@pytest.mark.parametrize("name", sorted(SLOW))
def test_what_is_not_known_takes_the_slow_path(never, name):
    policy = make_policy(**(dict(n_particles=4) | SLOW[name]))
    for _ in range(2):
        assert policy.predict(OBS)[0].shape == (9, 3)


@pytest.mark.parametrize("name", ["_predict", "refine", "base", "energy_fn", "obs_to_tensor", "unscale_action"])
def test_whoever_overrides_a_part_takes_the_slow_path(never, name):
    def override(self, *args, **kwargs):
        return getattr(RefinedPolicy, name)(self, *args, **kwargs)

    policy = make_policy(cls=type("MyPolicy", (RefinedPolicy,), {name: override}), n_particles=4)
    assert policy.predict(OBS)[0].shape == (9, 3)
    policy = make_policy(n_particles=4)
    setattr(policy, name, getattr(policy, name))
    assert policy.predict(OBS)[0].shape == (9, 3)


def test_a_subclass_that_overrides_nothing_is_fast():
    policy = make_policy(cls=type("MyPolicy", (RefinedPolicy,), {}), n_particles=4)
    check_equal(policy, OBS, deterministic=False)


def test_observations_in_lists_and_many_of_them_take_the_slow_path(never):
    policy = make_policy(n_particles=4)
    for obs in (OBS.tolist(), np.ones((9, 7), int), np.ones((MAX_ROWS // 4 + 1, 7), np.float32)):
        assert policy.predict(obs)[0].shape == (len(obs), 3)


def test_a_hook_sees_every_call():
    policy, calls = make_policy(n_particles=4), []
    policy.predict(OBS)
    handle = policy.critic.q_networks[0][1].register_forward_hook(lambda *args: calls.append(1))
    policy.predict(OBS)
    assert calls
    handle.remove()
    for _ in range(RETRY + 1):  # it looks again after so many
        policy.predict(OBS[0])
    assert is_fast(policy) and policy._fast.retry == 0


def test_a_replaced_method_of_the_critic_is_called(monkeypatch):
    policy, calls = make_policy(n_particles=4), []
    policy.predict(OBS)
    evaluate = policy.critic.evaluate
    monkeypatch.setattr(policy.critic, "evaluate", lambda *args: calls.append(1) or evaluate(*args))
    policy.predict(OBS)
    assert calls


@pytest.mark.parametrize("refiner", ["none", "langevin", "mppi"])
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_errors_are_those_of_the_slow_path(refiner, deterministic, value):
    policy = make_policy(refiner=refiner)
    policy.predict(OBS)
    bad = OBS.copy()
    bad[2, 1] = value
    for obs in (bad, bad[2]):
        with pytest.raises(ValueError, match="the observation must be finite"):
            policy.predict(obs, deterministic=deterministic)
    with pytest.raises(ValueError, match="Unexpected observation shape"):
        policy.predict(np.zeros((2, 8), np.float32))
    with pytest.raises(ValueError, match="You have passed a tuple"):
        policy.predict((OBS[0], {}))


def messages(policy, obs, deterministic):
    found = []
    for fast in (True, False):
        policy.fast_predict = fast
        with pytest.raises(FloatingPointError) as error, warnings.catch_warnings():
            warnings.simplefilter("error")
            policy.predict(obs, deterministic=deterministic)
        found.append(str(error.value))
    return found


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("refiner", ["langevin of one", "langevin", "mppi"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_energies_that_are_no_numbers_are_refused_by_the_same_words(refiner, deterministic, value):
    policy = make_policy(**REFINERS[refiner])
    policy.predict(OBS)
    with th.no_grad():
        policy.critic.q_networks[1][-1].bias.fill_(value)
    fast, slow = messages(policy, OBS[:3], deterministic)
    assert fast == slow and is_fast(policy)


def test_a_later_step_that_leaves_the_numbers_is_named():
    steps = dict(n_particles=1, refiner_kwargs=dict(step_size=1e38, max_displacement=None), refiner_steps=3)
    policy = make_policy(refiner="langevin", **steps)
    with th.no_grad():
        policy.critic.q_networks[0][-1].weight.mul_(1e3)
    fast, slow = messages(policy, OBS[:3], deterministic=False)
    assert fast == slow and "at step" in fast
    check_equal(policy, OBS[:3], deterministic=True)  # without a Jacobian the corners of the box have an energy
    check_equal(make_policy(refiner="mala", **steps), OBS[:3], deterministic=False)  # which rejects such steps


@pytest.mark.parametrize(
    "validates, error, match",
    [(True, ValueError, "Expected parameter loc"), (False, FloatingPointError, "action is NaN or infinity: the actor's")],
    ids=["as in SB3", "after torch.compile"],
)
def test_an_actor_that_is_no_number_fails(validates, error, match, monkeypatch):
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", validates)  # torch.compile leaves False there
    policy = make_policy(refiner="none")
    with th.no_grad():
        policy.actor.mu.bias.fill_(np.nan)
    with pytest.raises(error, match=match):
        policy.predict(OBS)


def test_training_mode_ends_and_is_not_walked_again(monkeypatch):
    policy, walked = make_policy(n_particles=1), []
    train = nn.Module.train
    monkeypatch.setattr(nn.Module, "train", lambda self, mode=True: walked.append(mode) or train(self, mode))
    policy.set_training_mode(True)
    assert all(module.training for module in policy.critic.modules())
    policy.predict(OBS)
    assert not any(
        module.training
        for net in (policy, policy.actor, policy.critic)
        for module in (net, *net.children())
        if net is not policy
    )
    assert not policy.training
    n = len(walked)
    policy.predict(OBS)
    policy.fast_predict = False
    policy.predict(OBS)
    assert len(walked) == n
    policy.critic.train()
    policy.predict(OBS)
    assert not policy.critic.q_networks[0].training


def test_modes_of_torch_around_it():
    policy = make_policy(n_particles=4)
    with th.inference_mode():
        inside, _ = predictions(policy, OBS, deterministic=False, fast=True)
    expected = check_equal(policy, OBS, deterministic=False)
    assert np.array_equal(inside, expected)
    with th.no_grad():
        check_equal(policy, OBS, deterministic=False)


def test_results_are_not_written_over():
    policy = make_policy(n_particles=1)
    first, _ = policy.predict(OBS[0])
    values = policy.q_values(OBS[:1], np.zeros((1, 3)))
    kept = first.copy(), values.copy()
    policy.predict(OBS[1])
    policy.q_values(OBS[1:2], np.ones((1, 3)))
    assert np.array_equal(first, kept[0]) and np.array_equal(values, kept[1])


def test_threads_do_not_share_arrays():
    policy = make_policy(n_particles=1, net_arch=[64, 64])
    expected = [policy.predict(obs, deterministic=True)[0] for obs in OBS]
    wrong = []

    def work(i):
        for _ in range(200):
            if not np.allclose(policy.predict(OBS[i], deterministic=True)[0], expected[i], atol=1e-6):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("kwargs", [dict(critic="scalar"), dict(critic="quantile"), dict(backbone="simba", refiner="svgd")])
def test_q_values_are_what_the_actor_climbs(kwargs):
    policy, actions = make_policy(**kwargs), np.random.default_rng(1).uniform(-1.0, 1.0, (9, 3))
    fast = policy.q_values(OBS, actions)
    assert is_fast(policy) and fast.shape == (9,)
    policy.fast_predict = False
    np.testing.assert_allclose(policy.q_values(OBS, actions), fast, atol=1e-5)
    with pytest.raises(ValueError, match="finite"):
        policy.q_values(np.full((9, 7), np.nan, np.float32), actions)


def test_the_reference_acts_exactly_as_sb3(never):
    settings = dict(policy_kwargs=dict(refiner="none", net_arch=[8]), learning_starts=5, buffer_size=50, device="cpu")
    model = EnergySAC("MlpPolicy", "Pendulum-v1", update="reference", **settings)
    model.learn(20)
    assert model.policy.fast_predict


@pytest.mark.parametrize("refiner", ["none", "langevin"])
def test_lean_training_acts_fast(refiner):
    policy_kwargs = dict(refiner=refiner, net_arch=[8])
    model = EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, learning_starts=5, buffer_size=50, device="cpu")
    model.learn(20)
    assert is_fast(model.policy)


@pytest.mark.parametrize("owner, name", [(MetropolisAdjustedLangevin, "propose"), (MetropolisChain, "step")])
def test_a_step_that_is_replaced_counts_in_the_next_prediction(monkeypatch, owner, name):
    policy, calls = make_policy(n_particles=2), []
    policy.predict(OBS[0])
    assert is_fast(policy)
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    policy.predict(OBS[0])
    assert calls


class OwnSequence(RefinerSequence):
    def step(self, state, target, tick, generator=None):
        state, info = super().step(state, target, tick, generator)
        return state._replace(particles=th.zeros_like(state.particles)), info


def test_steps_of_a_sequence_of_ones_own_are_taken():
    policy = make_policy(refiner=["langevin", "mala"], n_particles=1)
    sequence = policy.refinement.refiner
    policy.refinement = replace(policy.refinement, refiner=OwnSequence(sequence.members, sequence.steps))
    expected = policy.base(policy.obs_to_tensor(OBS[:1])[0]).mean if policy.refinement.precondition else 0.0
    for fast in (True, False):
        policy.fast_predict = fast
        found = np.arctanh(policy.scale_action(policy.predict(OBS[:1])[0]))
        np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-3)
