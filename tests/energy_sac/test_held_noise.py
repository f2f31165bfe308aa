"""Noise that is held for several steps: how long, whose, and what it does to actions."""

import numpy as np
import pytest
import torch as th
from scipy import stats
from stable_baselines3.common.env_util import make_vec_env

from sb3_energy import PGAC, EnergySAC
from sb3_energy.energy_sac.exploration import HeldNoise
from tests.models import small_model


def model_of(n_envs=1, policy_kwargs=None, cls=EnergySAC, **kwargs):
    env = make_vec_env("Pendulum-v1", n_envs)
    own = dict(exploration="held_noise", policy_kwargs=dict(net_arch=[8], refiner="none") | (policy_kwargs or {}))
    return cls("MlpPolicy", env, buffer_size=300, learning_starts=20, batch_size=16, seed=0, **own | kwargs)


def noises(policy, exploration, n_steps, n_envs=1, n=1, dones=()):
    """``(n_steps, n_envs, n, 1)`` of draws in steps of an environment."""
    exploration.begin(n_envs, 1)
    found = []
    for step in range(n_steps):
        with exploration.acting(policy):
            found.append(policy.noise(th.zeros(n_envs, n, 1)).clone())
        exploration.observe(np.full(n_envs, step in dones))
    return th.stack(found)


def runs(noise):
    """``(n_steps,)`` -> lengths of what is held, without the last one."""
    starts = np.flatnonzero(np.diff(noise)) + 1
    return np.diff(np.concatenate([[0], starts]))


@pytest.fixture(scope="module")
def policy():
    return model_of().policy


@pytest.mark.parametrize("longest, exponent", [(16, 2.0), (4, 1.0), (2, 3.0)])
def test_lengths_have_a_zeta_law(policy, longest, exponent):
    np.random.seed(0), th.manual_seed(0)
    noise = noises(policy, HeldNoise(longest, exponent), 30_000)[:, 0, 0, 0].numpy()
    lengths = runs(noise)
    law = np.array([n**-exponent for n in range(1, longest + 1)])
    observed = np.array([(lengths == n).sum() for n in range(1, longest + 1)])
    assert observed.sum() == len(lengths), "none is longer"
    assert stats.chisquare(observed, law / law.sum() * len(lengths)).pvalue > 1e-3
    values = noise[np.concatenate([[0], np.cumsum(lengths)])[:-1]]
    assert stats.kstest(values, "norm").pvalue > 1e-3


def test_each_environment_has_its_own(policy):
    np.random.seed(0), th.manual_seed(0)
    noise = noises(policy, HeldNoise(), 4000, n_envs=3)[:, :, 0, 0].numpy()
    changes = np.diff(noise, axis=0) != 0.0
    assert (changes.any(axis=1) & ~changes.all(axis=1)).mean() > 0.2
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.1
    assert np.corrcoef(noise[1:, 0], noise[:-1, 0])[0, 1] > 0.3


def test_an_episode_ends_it(policy):
    np.random.seed(0), th.manual_seed(0)
    exploration = HeldNoise(10_000, 0.01)
    noise = noises(policy, exploration, 90, dones=(29, 59))[:, 0, 0, 0].numpy()
    assert list(runs(noise)) == [30, 30]


def test_nothing_is_drawn_for_steps_that_do_not_ask(policy):
    exploration = HeldNoise()
    exploration.begin(2, 1)
    state = th.get_rng_state()
    for _ in range(5):
        with exploration.acting(policy):
            pass
    assert th.equal(th.get_rng_state(), state) and policy.noise is None


@pytest.mark.parametrize("n_envs", [1, 3])
def test_actions_are_made_of_it(n_envs):
    """Those that are stored: tanh(μ + σ ε), with the ε of the last step wherever it is held."""
    model, taken = model_of(n_envs), []
    held, sample = model._explorer, model._sample_action

    def recorded(*args):
        obs = th.as_tensor(model._last_obs)
        found = sample(*args)
        if model.num_timesteps >= 20:
            model.policy.set_training_mode(False)
            base = model.policy.base(obs)
            expected = th.tanh(base.mean + base.std * held._held[:, 0]).detach()
            np.testing.assert_allclose(found[1], expected, rtol=1e-4, atol=1e-5)
            taken.append(held._held[:, 0, 0].clone())
        return found

    model._sample_action = recorded
    model.learn(150)
    noise = th.stack(taken).numpy()
    assert 0.2 < (np.diff(noise, axis=0) == 0.0).mean() < 0.7


def test_evaluation_and_updates_have_noise_of_their_own():
    model = model_of().learn(30)
    obs = np.zeros((1, 3), np.float32)
    draws = {model.predict(obs)[0].item() for _ in range(8)}
    assert len(draws) == 8 and model.policy.noise is None


@pytest.mark.parametrize("refiner", ["mala", "flow", "svgd", "mppi", "snis", "derivative_free"])
def test_refiners_start_from_it(refiner):
    model = model_of(
        policy_kwargs=dict(refiner=refiner, n_particles=4, **({} if refiner == "flow" else dict(refiner_steps=1)))
    )
    model.learn(30)
    n = model._explorer._held.shape[1]
    assert model._explorer._held.shape == (1, n, 1) and n == (1 if refiner == "flow" else 2), "the others are of the box"


def test_a_single_chain_starts_from_the_held_draw():
    model = model_of(
        policy_kwargs=dict(refiner="langevin", n_particles=1, refiner_steps=1, refiner_kwargs=dict(step_size=1e-12))
    )
    policy, exploration, obs = model.policy, HeldNoise(1000, 0.01), th.zeros(1, 3)
    exploration.begin(1, 1)
    found = []
    for _ in range(3):
        with exploration.acting(policy):
            found.append(policy.predict(obs.numpy())[0].item())
    assert np.ptp(found) < 1e-4 and policy.noise is None


def test_pgac_and_other_starts():
    kind = dict(policy_kwargs=dict(initial_particles="normal"), exploration="held_noise")
    model = small_model("pgac", **kind).learn(30)
    assert isinstance(model, PGAC) and model._explorer._held.shape[2] == 1


def test_training_is_the_same_again():
    found = [model_of().learn(60).policy.state_dict() for _ in range(2)]
    assert all(th.equal(found[0][name], found[1][name]) for name in found[0])


REFUSED = [
    (dict(exploration_kwargs=dict(longest=1)), ValueError, "longest must be at least 2"),
    (dict(exploration_kwargs=dict(longest=2.5)), TypeError, "longest must be"),
    (dict(exploration_kwargs=dict(exponent=0.0)), ValueError, "exponent must be"),
    (dict(exploration_kwargs=dict(sigma=0.0)), TypeError, "sigma"),
    (dict(use_sde=True), ValueError, "exploration='held_noise' needs use_sde=False"),
    (
        dict(policy_kwargs=dict(refiner="mala", initial_particles="uniform")),
        ValueError,
        "exploration='held_noise' needs proposals of the Gaussian, got initial_particles='uniform'",
    ),
]


@pytest.mark.parametrize("kwargs, error, message", REFUSED)
def test_refused(kwargs, error, message):
    with pytest.raises(error, match=message) as caught:
        model_of(**kwargs)
    assert "\n" not in str(caught.value)
