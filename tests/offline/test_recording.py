"""Recorded data sets are what happened: replayed here step by step, of one environment and several, of vectors and images."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from sb3_energy.offline.loading import load_dataset
from sb3_energy.offline.recording import record_dataset


class Counter(gym.Env):
    """Observes who it is and its steps; terminates after ``length`` steps."""

    action_space = spaces.Box(np.float32([-1.0]), np.float32([3.0]))
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, number=0, length=3):
        self.number, self.length = number, length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.float32([self.number, 0]), {}

    def step(self, action):
        self.steps += 1
        self.seen = np.float32([self.number, self.steps])
        return self.seen, float(action[0]), self.steps == self.length, False, {}


class Agent:
    """Acts by the observation; its state counts its steps since the start of the episode."""

    def __init__(self, action=None):
        self.action, self.calls = action, []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        state = np.zeros(len(observation)) if state is None else state
        state = np.where(episode_start, 0.0, state + 1.0)
        self.calls.append((state.copy(), deterministic))
        action = 0.1 * observation[:, 1:2] + observation[:, :1] if self.action is None else self.action
        return np.broadcast_to(action, (len(observation), 1)), state


def test_whole_episodes_of_one_environment():
    agent = Agent()
    data = record_dataset(agent, Counter(), n_episodes=2, deterministic=False)
    assert data.observations[:, 1].tolist() == [0, 1, 2] * 2 and data.next_observations[:, 1].tolist() == [1, 2, 3] * 2
    assert data.actions[:, 0].tolist() == pytest.approx([0.0, 0.1, 0.2] * 2)
    assert np.allclose(data.rewards, data.actions[:, 0]), "the environment got the actions that are recorded"
    assert data.terminations.tolist() == [False, False, True] * 2 and not data.truncations.any() and data.are_whole.all()
    assert [state[0] for state, _ in agent.calls] == [0, 1, 2] * 2, "its hidden state is handed on"
    assert not any(deterministic for _, deterministic in agent.calls)


def test_several_environments_have_fixed_shares():
    makers = [lambda: Counter(0, 2), lambda: Counter(1, 5)]
    data = record_dataset(Agent(), DummyVecEnv(makers), n_episodes=3)
    assert data.observations[:, 0].tolist() == [0] * 2 + [1] * 10, "one of the short episodes, two of the long"
    assert data.n_episodes == 3 and data.are_whole.all()
    data = record_dataset(Agent(), DummyVecEnv(makers), n_steps=7)
    assert len(data) == 7 and data.observations[:, 0].tolist() == [0] * 3 + [1] * 4
    assert np.flatnonzero(data.episode_ends).tolist() == [1, 2, 6] and data.are_whole.tolist() == [True, False, False]


def test_time_limits_are_truncations_with_the_observation_behind_them():
    data = record_dataset(Agent(), TimeLimit(Counter(length=9), 4), n_steps=8)
    assert np.flatnonzero(data.truncations).tolist() == [3, 7] and not data.terminations.any()
    assert data.next_observations[:, 1].tolist() == [1, 2, 3, 4] * 2, "not that of the next episode"


def test_what_was_normalised_is_recorded_as_it_was():
    env = VecNormalize(make_vec_env(Counter, 2, env_kwargs=dict(length=30)))
    env.reset()
    for _ in range(20):
        env.step(np.random.default_rng(0).uniform(-1, 1, (2, 1)))
    mean, count = env.obs_rms.mean.copy(), env.obs_rms.count
    agent = Agent()
    data = record_dataset(agent, env, n_steps=70)
    assert data.observations[:30, 1].tolist() == list(range(30)) and data.next_observations[29, 1] == pytest.approx(30.0)
    assert np.allclose(data.rewards, data.actions[:, 0]), "the original reward"
    assert not np.allclose(data.actions[:30, 0], 0.1 * np.arange(30)), "the agent saw normalised observations"
    assert np.array_equal(env.obs_rms.mean, mean) and env.obs_rms.count == count and env.training
    with pytest.raises(ValueError, match="VecNormalize must be the outermost wrapper of env, got VecMonitor around it"):
        record_dataset(agent, VecMonitor(env), n_steps=3)


@pytest.mark.parametrize("algorithm", [SAC, PPO])
def test_sb3s_agents_act(algorithm, tmp_path):
    agent = algorithm("MlpPolicy", "Pendulum-v1", seed=0, device="cpu")
    first = record_dataset(agent, "Pendulum-v1", n_episodes=1, seed=3, path=tmp_path / "pendulum")
    again = record_dataset(agent.policy, gym.make("Pendulum-v1"), n_steps=200, seed=3)
    assert np.array_equal(first.actions, again.actions) and np.array_equal(first.observations, again.observations)
    assert np.array_equal(load_dataset(tmp_path / "pendulum.npz").actions, first.actions)
    assert not np.array_equal(record_dataset(agent, "Pendulum-v1", 200, seed=4).observations, first.observations)
    seen = agent.predict(first.observations, deterministic=True)[0]
    assert np.allclose(seen, first.actions, atol=1e-5)


class Pictures(Counter):
    observation_space = spaces.Dict(image=spaces.Box(0, 255, (36, 36, 1), np.uint8), count=spaces.Discrete(10))

    def _of(self, seen):
        return dict(image=np.full((36, 36, 1), seen[1], np.uint8), count=int(seen[1]))

    def reset(self, **kwargs):
        seen, info = super().reset(**kwargs)
        return self._of(seen), info

    def step(self, action):
        seen, *others = super().step(action)
        return self._of(seen), *others


class Constant(Agent):
    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.full((len(next(iter(observation.values()))), 1), 0.5), state


def test_dictionaries_with_images():
    data = record_dataset(Constant(), DummyVecEnv([Pictures, Pictures]), n_episodes=2)
    assert data.observations["image"].shape == (6, 1, 36, 36) and data.observations["image"].dtype == np.uint8
    assert data.observations["count"].tolist() == [0, 1, 2] * 2 and data.next_observations["count"].tolist() == [1, 2, 3] * 2
    assert data.next_observations["image"][:, 0, 5, 5].tolist() == [1, 2, 3] * 2


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_minari_data_set_is_written(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    agent = SAC("MlpPolicy", "Pendulum-v1", seed=0, device="cpu")
    data = record_dataset(agent, "Pendulum-v1", n_steps=250, dataset_id="pendulum/random-v0")
    found = minari.load_dataset("pendulum/random-v0")
    assert found.total_episodes == 2 and found.total_steps == 250
    assert found.recover_environment().spec.id == "Pendulum-v1"
    assert np.array_equal(load_dataset(found).next_observations, data.next_observations)
    with pytest.raises(ValueError, match="dataset_id must be a new one"):
        record_dataset(agent, "Pendulum-v1", 3, dataset_id="pendulum/random-v0")


def test_the_progress_bar_counts_what_was_asked_for(monkeypatch):
    rich = pytest.importorskip("tqdm.rich")
    bars = []

    class Bar(rich.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(rich, "tqdm", Bar)
    record_dataset(Agent(), DummyVecEnv([lambda: Counter(0, 2), lambda: Counter(1, 5)]), n_episodes=3, progress_bar=True)
    record_dataset(Agent(), Counter(), n_steps=4, progress_bar=True)
    assert [(bar.total, bar.n) for bar in bars] == [(3, 3), (4, 4)]


class Broken(Counter):
    def step(self, action):
        seen, *others = super().step(action)
        return seen * np.float32(np.nan), *others


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        (dict(model=Agent(action=3.5)), ValueError, "actions must lie in the box of the action space, got 3.5 in row 0"),
        (dict(model=Agent(action=np.nan)), ValueError, "actions must be finite in single precision, got nan in row 0"),
        (dict(model=len), TypeError, "model must have SB3's predict, got builtin_function_or_method"),
        (dict(env=Broken()), ValueError, "the observation must be finite, got NaN or infinity from the environment"),
        (dict(env="CartPole-v1"), ValueError, r"the action space must be a Box: .*, got Discrete\(2\)"),
        (dict(n_steps=None), ValueError, "either n_steps or n_episodes must be given, got None and None"),
        (dict(n_episodes=1), ValueError, "either n_steps or n_episodes must be given, got 3 and 1"),
        (dict(n_steps=0), ValueError, "n_steps must be at least 1, got 0"),
        (dict(n_steps=1.5), TypeError, "n_steps must be an integer"),
        (dict(deterministic="yes"), TypeError, "deterministic must be True or False"),
        (dict(seed=-1), ValueError, "seed must be at least 0"),
    ],
)
def test_what_is_wrong_is_refused(kwargs, error, words):
    with pytest.raises(error, match=words):
        record_dataset(**(dict(model=Agent(), env=Counter(), n_steps=3) | kwargs))
