"""Chains that stand beside the transitions they were run at."""

import pickle

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.envs import SimpleMultiObsEnv

from sb3_energy.pgac.persistent_chains import ChainReplayBuffer, DictChainReplayBuffer, NStepChainReplayBuffer

OBS, ACTIONS = spaces.Box(-np.inf, np.inf, (1,)), spaces.Box(-1.0, 1.0, (2,))
N_ENVS, N_CHAINS = 3, 4
PLAIN = {
    "plain": (ChainReplayBuffer, ReplayBuffer, {}),
    "lean memory": (ChainReplayBuffer, ReplayBuffer, dict(optimize_memory_usage=True, handle_timeout_termination=False)),
    "n steps": (NStepChainReplayBuffer, NStepReplayBuffer, dict(n_steps=3, gamma=0.5)),
    "dict": (DictChainReplayBuffer, DictReplayBuffer, {}),
}
each_buffer = pytest.mark.parametrize("name", sorted(PLAIN))
pytestmark = pytest.mark.filterwarnings("ignore:.*total number of bytes")


def label(row, env):
    return 10.0 * row + env


def add(buffer, row):
    """A transition of each environment whose observation says where it stands."""
    obs = np.array([[label(row, env)] for env in range(N_ENVS)], np.float32)
    wrapped = (lambda x: dict(first=x, second=-x)) if isinstance(buffer, DictReplayBuffer) else (lambda x: x)
    zeros = np.zeros(N_ENVS, np.float32)
    buffer.add(wrapped(obs), wrapped(obs + 10.0), np.zeros((N_ENVS, 2)), zeros, zeros, [{}] * N_ENVS)


def make(name, n_rows, size=8, chains=True):
    with_chains, without, kwargs = PLAIN[name]
    obs = spaces.Dict(first=OBS, second=OBS) if name == "dict" else OBS
    kwargs = kwargs | (dict(n_chains=N_CHAINS) if chains else {})
    buffer = (with_chains if chains else without)(size * N_ENVS, obs, ACTIONS, n_envs=N_ENVS, device="cpu", **kwargs)
    for row in range(n_rows):
        add(buffer, row)
    return buffer


def labels(buffer, samples):
    obs = samples.observations
    return (obs["first"] if isinstance(obs, dict) else obs).numpy().reshape(-1)


def ends_of(found):
    return np.broadcast_to(found[:, None, None], (len(found), N_CHAINS, 2)) / 1000.0


@each_buffer
@pytest.mark.parametrize("n_rows", [5, 8, 13], ids=["partly full", "full", "overwritten"])
def test_chains_belong_to_the_transitions_that_were_sampled(name, n_rows):
    buffer = make(name, n_rows)
    seen = set()
    for seed in range(5):
        np.random.seed(seed)
        found = labels(buffer, buffer.sample(20))
        assert buffer.last_chains(20)[1].tolist() == [value in seen for value in found], "those that were kept before"
        seen |= set(found.tolist())
        buffer.keep_chains(ends_of(found))
    assert len(seen) > 12
    for seed in range(5, 8):
        np.random.seed(seed)
        found = labels(buffer, buffer.sample(15))
        kept, known = buffer.last_chains(10)
        assert kept.shape == (10, N_CHAINS, 2) and kept.dtype == np.float32
        assert known.tolist() == [value in seen for value in found[:10]]
        np.testing.assert_allclose(kept[known], ends_of(found[:10])[known], rtol=1e-6)


@each_buffer
def test_samples_are_those_of_the_buffer_without_chains(name):
    mine, theirs = make(name, 13), make(name, 13, chains=False)
    for seed in range(3):
        found = []
        for buffer in (mine, theirs):
            np.random.seed(seed)
            found.append((labels(buffer, buffer.sample(20)), np.random.random()))
        assert np.array_equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


@each_buffer
def test_chains_go_when_the_transition_does(name):
    buffer = make(name, 8)
    buffer.has_chains[:] = True
    add(buffer, 8)
    assert not buffer.has_chains[0].any() and buffer.has_chains[1:].all()
    buffer.reset()
    assert not buffer.has_chains.any()


@each_buffer
def test_they_are_pickled(name):
    buffer = make(name, 13)
    np.random.seed(0)
    buffer.keep_chains(ends_of(labels(buffer, buffer.sample(30))))
    again = pickle.loads(pickle.dumps(buffer))
    assert buffer.has_chains.any()
    assert np.array_equal(again.chains, buffer.chains) and np.array_equal(again.has_chains, buffer.has_chains)
    np.random.seed(1)
    found = labels(again, again.sample(30))
    kept, known = again.last_chains(30)
    assert known.any()
    np.testing.assert_allclose(kept[known], ends_of(found)[known], rtol=1e-6)


@pytest.mark.parametrize("n_steps, buffer", [(1, ChainReplayBuffer), (3, NStepChainReplayBuffer)])
def test_the_buffer_is_the_one_that_sb3_would_choose(make_model, n_steps, buffer):
    assert type(make_model(n_steps=n_steps, persistent_chains=True).replay_buffer) is buffer


def test_n_steps_of_dictionaries_are_refused(make_model):
    env = SimpleMultiObsEnv(discrete_actions=False)
    model = make_model(policy="MultiInputPolicy", env=env, persistent_chains=True)
    assert type(model.replay_buffer) is DictChainReplayBuffer
    with pytest.raises(ValueError, match=r"^n_steps must be 1 with observations that are a dictionary, got 3$"):
        make_model(policy="MultiInputPolicy", env=env, persistent_chains=True, n_steps=3)


def test_without_a_sample_there_are_none():
    with pytest.raises(RuntimeError, match=r"^chains belong to transitions that were sampled, and none has been$"):
        make("plain", 3).last_chains(1)


@pytest.mark.parametrize("n_chains, error", [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_wrong_number_of_chains(n_chains, error):
    with pytest.raises(error, match=f"^n_chains must be .*, got {n_chains}$"):
        ChainReplayBuffer(10, OBS, ACTIONS, n_chains=n_chains)
