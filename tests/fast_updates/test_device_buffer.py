"""The replay buffer on the device gives the transitions of SB3's."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_energy import DeviceReplayBuffer, EnergySAC

NAMES = ("observations", "actions", "next_observations", "dones", "rewards")
VECTOR, IMAGE = spaces.Box(-1.0, 1.0, (3,)), spaces.Box(0, 255, (2, 4, 4), np.uint8)
ACTIONS = spaces.Box(-1.0, 1.0, (2,))


def buffers(n_steps, space=VECTOR, n_envs=1, actions=ACTIONS, **kwargs):
    """Both, with the same transitions."""
    found = [cls(60, space, actions, "cpu", n_envs=n_envs, **kwargs) for cls in (ReplayBuffer, DeviceReplayBuffer)]
    rng = np.random.default_rng(0)
    for _ in range(n_steps):
        if space.dtype == np.uint8:
            obs, after = rng.integers(0, 256, (2, n_envs, *space.shape), dtype=np.uint8)
        else:
            obs, after = rng.normal(size=(2, n_envs, *space.shape))
        action, reward = rng.normal(size=(n_envs, *actions.shape)), rng.normal(size=n_envs)
        done, infos = rng.random(n_envs) < 0.5, [{"TimeLimit.truncated": bool(rng.random() < 0.5)} for _ in range(n_envs)]
        for buffer in found:
            buffer.add(obs, after, action, reward, done, infos)
    return found


def assert_same_samples(theirs, ours, env=None, tolerance=0.0):
    np.random.seed(0)
    expected, after = theirs.sample(50, env), np.random.random()
    np.random.seed(0)
    found = ours.sample(50, env)
    assert np.random.random() == after
    assert found.discounts is expected.discounts is None
    for name in NAMES:
        mine, other = getattr(found, name), getattr(expected, name)
        assert mine.dtype == other.dtype and mine.shape == other.shape, name
        assert (mine.double() - other.double()).abs().max() <= tolerance, name


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("n_steps", [10, 20, 75], ids=["part", "full with 3", "wrapped"])
@pytest.mark.parametrize("timeouts", [True, False])
def test_same_transitions(n_steps, n_envs, timeouts):
    theirs, ours = buffers(n_steps, n_envs=n_envs, handle_timeout_termination=timeouts)
    assert (ours.pos, ours.full, ours.size(), ours.buffer_size) == (theirs.pos, theirs.full, theirs.size(), theirs.buffer_size)
    assert_same_samples(theirs, ours)
    assert ours.sample(50).dones.unique().tolist() == [0.0, 1.0]
    ours.reset()
    assert (ours.pos, ours.full, ours.size()) == (0, False, 0)


@pytest.mark.parametrize(
    "space", [IMAGE, spaces.Box(-1.0, 1.0, (2, 2), np.float64), spaces.Discrete(5)], ids=["image", "double", "discrete"]
)
def test_types_and_shapes_stay(space):
    theirs, ours = buffers(20, space, n_envs=2) if space.shape else buffers(0, space)
    if not space.shape:
        for buffer in (theirs, ours):
            buffer.add(np.array([3]), np.array([4]), np.zeros((1, 2)), np.ones(1), np.zeros(1, dtype=bool), [{}])
    assert_same_samples(theirs, ours)
    assert ours.observations.dtype == th.from_numpy(theirs.observations).dtype


def test_what_is_added_is_a_copy():
    _, buffer = buffers(0)
    obs = np.ones((1, 3), np.float32)
    buffer.add(obs, obs, np.zeros((1, 2)), np.zeros(1), np.zeros(1), [{}])
    obs[:] = 7.0
    assert buffer.observations[0].tolist() == [[1.0, 1.0, 1.0]] == buffer.next_observations[0].tolist()


class Own(VecNormalize):
    def normalize_obs(self, obs):
        return super().normalize_obs(obs) + 1.0


@pytest.mark.parametrize("wrapper", [VecNormalize, Own])
@pytest.mark.parametrize(
    "kwargs", [{}, dict(norm_obs=False), dict(norm_reward=False), dict(clip_obs=0.3, clip_reward=0.1)], ids=str
)
def test_normalised_as_by_vec_normalize(wrapper, kwargs):
    env = wrapper(make_vec_env("Pendulum-v1", n_envs=2), **kwargs)
    env.reset()
    for _ in range(20):
        env.step(np.random.default_rng(0).uniform(-2, 2, (2, 1)).astype(np.float32))
    theirs, ours = buffers(40, n_envs=2)
    assert_same_samples(theirs, ours, env, tolerance=1e-6)
    np.random.seed(0)
    raw = ours.sample(50)
    np.random.seed(0)
    changed = not th.equal(ours.sample(50, env).observations, raw.observations)
    assert changed == (env.norm_obs or wrapper is Own)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda buffer: pickle.loads(pickle.dumps(buffer))], ids=["copy", "pickle"])
def test_copied(how):
    theirs, ours = buffers(75)
    again = how(ours)
    assert_same_samples(theirs, again)
    again.observations.zero_()
    assert_same_samples(theirs, ours)


def test_moves_when_its_device_is_set():
    _, buffer = buffers(5)
    buffer.device = "meta"
    assert buffer.device == th.device("meta") and {getattr(buffer, name).device.type for name in NAMES} == {"meta"}


def test_refused():
    with pytest.raises(ValueError, match=r"needs optimize_memory_usage=False, got True$"):
        DeviceReplayBuffer(10, VECTOR, ACTIONS, optimize_memory_usage=True)
    with pytest.raises(TypeError, match=r"must be no spaces\.Dict"):
        DeviceReplayBuffer(10, spaces.Dict(a=VECTOR), ACTIONS)


@pytest.mark.parametrize("algorithm", [SAC, EnergySAC])
def test_trains_as_with_sb3s(algorithm, tmp_path):
    def trained(buffer_class):
        kwargs = dict(policy_kwargs=dict(net_arch=[16]), replay_buffer_class=buffer_class)
        model = algorithm("MlpPolicy", gym.make("Pendulum-v1"), learning_starts=20, buffer_size=50, seed=0, **kwargs)
        return model.learn(70)

    models = [trained(ReplayBuffer), trained(DeviceReplayBuffer)]
    for mine, other in zip(*(model.policy.parameters() for model in models), strict=True):
        assert th.allclose(mine, other, atol=1e-6)
    model = models[1]
    model.save(tmp_path / "model"), model.save_replay_buffer(tmp_path / "buffer")
    loaded = algorithm.load(tmp_path / "model", env=gym.make("Pendulum-v1"))
    assert isinstance(loaded.replay_buffer, DeviceReplayBuffer) and loaded.replay_buffer.size() == 0
    loaded.load_replay_buffer(tmp_path / "buffer", truncate_last_traj=False)
    assert loaded.replay_buffer.device == loaded.device
    np.random.seed(0)
    expected = model.replay_buffer.sample(20)
    np.random.seed(0)
    assert th.equal(loaded.replay_buffer.sample(20).observations, expected.observations)
    loaded.learn(5, reset_num_timesteps=False)


@pytest.mark.skipif(not th.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(tmp_path):
    theirs, ours = buffers(75, n_envs=2)
    ours.device = "cuda"
    assert ours.observations.is_cuda
    np.random.seed(0)
    expected = theirs.sample(50)
    np.random.seed(0)
    for mine, other in zip(ours.sample(50)[:5], expected[:5], strict=True):
        assert mine.is_cuda and th.equal(mine.cpu(), other)
    again = pickle.loads(pickle.dumps(ours))
    assert again.observations.is_cuda and th.equal(again.observations, ours.observations)
