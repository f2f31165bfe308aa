"""Exploration beyond the policy's own draws: how much of it, how long, and that what is taken is what is stored."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from scipy import stats
from stable_baselines3.common.env_util import make_vec_env

from sb3_energy import PGAC, EnergySAC
from sb3_energy.energy_sac.exploration import Exploration, HeldActions
from tests.models import small_model


class Recorder(gym.Env):
    """Keeps the actions it is given; episodes of 10 steps, actions in [0, 4]."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Box(0.0, 4.0, (3,), np.float32)

    def __init__(self):
        self.taken, self.steps = [], 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.taken.append(np.array(action))
        self.steps += 1
        return np.full(2, self.steps / 10.0, np.float32), 0.0, False, self.steps == 10, {}


def run(exploration, n_steps, n_envs=1, dones=()):
    """``(n_steps, n_envs, 2)`` actions where the policy's are 2, which is outside of the box."""
    exploration.begin(n_envs, 2)
    found = []
    for step in range(n_steps):
        policys = np.full((n_envs, 2), 2.0, np.float32)
        found.append(exploration.actions(policys))
        assert (policys == 2.0).all(), "the policy's own array is left as it is"
        exploration.observe(np.full(n_envs, step in dones))
    return np.stack(found)


def bursts(actions):
    """``(n_steps, 2)`` -> lengths and actions of the bursts."""
    changes = np.flatnonzero((actions[1:] != actions[:-1]).any(axis=1)) + 1
    parts = np.split(actions, changes)
    kept = [part for part in parts[:-1] if part[0, 0] != 2.0]
    return np.array([len(part) for part in kept]), np.stack([part[0] for part in kept])


@pytest.mark.parametrize("fraction, mean_length", [(0.2, 4.0), (0.5, 2.0), (0.05, 10.0), (0.3, 1.0)])
def test_the_fraction_and_the_lengths_are_those_asked_for(fraction, mean_length):
    np.random.seed(0)
    actions = run(HeldActions(fraction, mean_length), 40_000)[:, 0]
    lengths, held = bursts(actions)
    assert (actions[:, 0] != 2.0).mean() == pytest.approx(fraction, abs=4.0 * (mean_length * fraction / 40_000) ** 0.5 + 0.005)
    p = 1.0 / mean_length
    edges = np.arange(1, 6)
    if mean_length == 1.0:
        assert lengths.max() == 1
    else:
        expected = [*(stats.geom.pmf(edges, p)), stats.geom.sf(edges[-1], p)]
        observed = [*((lengths == n).sum() for n in edges), (lengths > edges[-1]).sum()]
        assert stats.chisquare(observed, np.array(expected) * len(lengths)).pvalue > 1e-3
    for coordinate in held.T:
        assert stats.kstest(coordinate, stats.uniform(-1.0, 2.0).cdf).pvalue > 1e-3


@pytest.mark.parametrize("length", [1, 2, 5, 20])
def test_each_step_of_an_episode_is_as_likely_to_be_explored(length):
    np.random.seed(0)
    episodes = run(HeldActions(0.3, 4.0), length * 4000, dones=set(range(length - 1, length * 4000, length)))
    explored = (episodes.reshape(4000, length, 2)[:, :, 0] != 2.0).mean(axis=0)
    assert np.abs(explored - 0.3).max() < 4.0 * (0.3 * 0.7 / 4000) ** 0.5


def test_nothing_is_held_with_a_fraction_of_0():
    assert (run(HeldActions(fraction=0.0), 1000) == 2.0).all()


def test_a_burst_ends_with_its_episode():
    np.random.seed(0)
    actions = run(HeldActions(0.9999, 10_000.0), 60, dones=(19, 39))[:, 0]
    changes = np.flatnonzero((actions[1:] != actions[:-1]).any(axis=1)) + 1
    assert {20, 40} <= set(changes.tolist()), "each episode has a burst of its own, or none yet"
    assert len(changes) <= 8, "which lasts"


def test_environments_explore_by_themselves():
    np.random.seed(0)
    actions = run(HeldActions(0.5, 3.0), 2000, n_envs=3)
    in_burst = actions[:, :, 0] != 2.0
    assert np.allclose(in_burst.mean(axis=0), 0.5, atol=0.08)
    assert np.abs(np.corrcoef(in_burst.T.astype(float))[np.triu_indices(3, 1)]).max() < 0.1


@pytest.mark.parametrize("kind", ["langevin", "pgac"])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_what_is_taken_is_what_is_stored(kind, n_envs):
    envs = make_vec_env(Recorder, n_envs=n_envs)
    model = small_model(kind, env=envs, exploration="held_actions", exploration_kwargs=dict(fraction=0.5)).learn(30 * n_envs)
    stored = model.replay_buffer.actions[:30]
    taken = np.stack([env.unwrapped.taken for env in envs.envs], axis=1)
    np.testing.assert_allclose(taken / 2.0 - 1.0, stored, atol=1e-6)
    repeats = (stored[1:] == stored[:-1]).all(axis=2).mean()
    assert 0.15 < repeats < 0.65


def test_a_seed_gives_the_same_run_and_none_is_stable_baselines3s():
    explores, off = dict(exploration="held_actions"), dict(exploration="none")
    runs = [small_model("langevin", **kwargs).learn(60).replay_buffer.actions[:60] for kwargs in (explores, explores, off)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()


def test_a_saved_model_goes_on_exploring(tmp_path):
    kwargs = dict(exploration="held_actions", exploration_kwargs=dict(fraction=0.9, mean_length=50.0))
    model = small_model("langevin", **kwargs).learn(40)
    model.save(tmp_path / "model")
    loaded = EnergySAC.load(tmp_path / "model", env="Pendulum-v1").learn(40, reset_num_timesteps=False)
    actions = loaded.replay_buffer.actions[:40, 0]
    assert (actions[1:] == actions[:-1]).mean() > 0.5


def test_learning_goes_on_within_a_burst():
    kwargs = dict(exploration="held_actions", exploration_kwargs=dict(fraction=0.9, mean_length=50.0))
    model = small_model("langevin", **kwargs).learn(30)
    before = model._explorer._left.copy()
    assert before > 0
    model.learn(1, reset_num_timesteps=False)
    assert model._explorer._left == before - 1


class Opposite(Exploration):
    """The opposite of what the policy does."""

    def actions(self, actions):
        return -actions


def test_an_exploration_of_ones_own():
    small_model("langevin", exploration=Opposite).learn(30)


def test_predict_does_not_explore():
    kwargs = dict(exploration="held_actions", exploration_kwargs=dict(fraction=0.99, mean_length=50.0))
    model = small_model("langevin", **kwargs).learn(25)
    obs = model.observation_space.sample()
    actions = [model.predict(obs)[0] for _ in range(8)]
    assert len(np.unique(actions)) == 8


@pytest.mark.parametrize("algorithm", [EnergySAC, PGAC])
@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        (dict(exploration="bursts"), ValueError, "exploration must be one of .*'held_actions'.* got 'bursts'"),
        (dict(exploration=3), TypeError, "exploration must be one of .* or a class, got 3"),
        (dict(exploration=dict), TypeError, "exploration must be one of .* or a subclass of Exploration, got .*dict"),
        (
            dict(exploration="none", exploration_kwargs=dict(fraction=0.1)),
            ValueError,
            "exploration_kwargs needs an exploration, .* with 'none'",
        ),
        (dict(exploration_kwargs=dict(part=0.1)), TypeError, "exploration_kwargs of HeldActions"),
        (dict(exploration="held_actions", exploration_kwargs=3), TypeError, "exploration_kwargs must be a dict .*, got 3"),
        (dict(exploration="held_actions", exploration_kwargs=dict(part=0.1)), TypeError, "exploration_kwargs of HeldActions"),
        (
            dict(exploration="held_actions", exploration_kwargs=dict(fraction=1.0)),
            ValueError,
            r"fraction must lie in \[0, 1\)",
        ),
        (dict(exploration="held_actions", exploration_kwargs=dict(fraction=-0.1)), ValueError, "fraction must be .* -0.1"),
        (dict(exploration="held_actions", exploration_kwargs=dict(fraction="a")), TypeError, "fraction must be .* 'a'"),
        (
            dict(exploration="held_actions", exploration_kwargs=dict(mean_length=0.5)),
            ValueError,
            "mean_length must be at least 1",
        ),
    ],
)
def test_wrong_arguments_are_refused(algorithm, kwargs, error, message):
    with pytest.raises(error, match=message):
        algorithm("MlpPolicy", "Pendulum-v1", **kwargs)
