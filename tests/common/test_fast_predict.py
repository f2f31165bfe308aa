"""The fast ``predict`` gives SB3's numbers, draws what SB3's draws, and is not taken where something is not known."""

import copy
import itertools
import pickle
import threading
import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_energy import EnergySAC
from sb3_energy.common.array_policy import ArrayPolicy
from sb3_energy.common.fast_predict import MAX_ROWS, RETRY
from sb3_energy.common.policies import RefinedPolicy
from sb3_energy.energies import QEnergy
from sb3_energy.refiners import MPPI, Langevin
from sb3_energy.schedules import LinearRamp, Polynomial

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (7,))
ACTIONS = spaces.Box(np.array([-2.0, -1.0, 0.0], np.float32), np.array([1.0, 1.0, 3.0], np.float32))
OBS = np.random.default_rng(0).normal(size=(9, 7)).astype(np.float32)


def make_policy(observation_space=OBSERVATIONS, action_space=ACTIONS, cls=RefinedPolicy, **kwargs):
    th.manual_seed(0)
    policy = cls(observation_space, action_space, lambda _: 1e-3, **(dict(net_arch=[32, 32]) | kwargs))
    with th.no_grad():
        for q_net in policy.critic.q_networks:
            q_net[-1].weight.mul_(4.0)  # so that refining does something
        policy.temperature.fill_(0.3)
        policy.update_normalization(th.randn(100, *observation_space.shape) * 2.0 + 1.0)
    return policy


def predictions(policy, obs, deterministic, fast):
    """Two in a row, and the state of the generator after them."""
    policy.fast_predict = fast
    th.manual_seed(1)
    return [policy.predict(obs, deterministic=deterministic)[0] for _ in range(2)], th.get_rng_state()


def is_fast(policy):
    """Whether the last prediction was."""
    return policy.__dict__.get("_arrays") is not None


def check_equal(policy, obs, deterministic):
    actions, state = predictions(policy, obs, deterministic, fast=True)
    assert is_fast(policy)
    expected, expected_state = predictions(policy, obs, deterministic, fast=False)
    assert th.equal(state, expected_state)
    for ours, theirs in zip(actions, expected, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    return actions


REFINERS = {
    "none": dict(refiner="none"),
    "langevin of one": dict(n_particles=1),
    "langevin": dict(n_particles=8),
    "mppi": dict(refiner="mppi", n_particles=16, refiner_steps=2),
}
PARTS = {
    "backbone": ["plain", "layer_norm", "simba", "bro"],
    "critic": ["scalar", "quantile"],
    "box": ["tanh", "reflect"],
    "initial_particles": ["base", "uniform", "mixture"],
}


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("aggregate", ["mean", "min", "lcb"])
@pytest.mark.parametrize("refiner", sorted(REFINERS))
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
    "schedules": dict(refiner_kwargs=dict(step_size=Polynomial(0.1, 0.01), noise_scale=LinearRamp())),
    "no noise": dict(refiner_kwargs=dict(noise_scale=0.0)),
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


@pytest.fixture
def never(monkeypatch):
    """Makes the fast path fail, so that whoever predicts has taken the slow one."""

    def refuse(*args):
        raise AssertionError("the fast path was taken")

    monkeypatch.setattr(ArrayPolicy, "act", refuse)


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
    assert is_fast(policy) and policy._retry == 0


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
    policy = make_policy(n_particles=1, refiner_kwargs=dict(step_size=1e38, max_displacement=None), refiner_steps=3)
    with th.no_grad():
        policy.critic.q_networks[0][-1].weight.mul_(1e3)
    fast, slow = messages(policy, OBS[:3], deterministic=False)
    assert fast == slow and "at step" in fast
    check_equal(policy, OBS[:3], deterministic=True)  # without a Jacobian the corners of the box have an energy


def test_an_actor_that_is_no_number_fails_as_in_sb3():
    policy = make_policy(refiner="none")
    with th.no_grad():
        policy.actor.mu.bias.fill_(np.nan)
    with pytest.raises(ValueError, match="Expected parameter loc"):
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


def test_without_a_refiner_training_acts_exactly_as_sb3(never):
    policy_kwargs = dict(refiner="none", net_arch=[8])
    model = EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, learning_starts=5, buffer_size=50, device="cpu")
    model.learn(20)
    assert model.policy.fast_predict


def test_training_with_a_refiner_acts_fast():
    policy_kwargs = dict(n_particles=2, net_arch=[8])
    model = EnergySAC("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, learning_starts=5, buffer_size=50, device="cpu")
    model.learn(20)
    assert is_fast(model.policy)
