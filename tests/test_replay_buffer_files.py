"""Replay buffers from files: of SB3 and of this package, and refused where they do not fit the model."""

import io
import pickle

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, SimpleMultiObsEnv
from stable_baselines3.common.save_util import load_from_pkl

from sb3_energy.fast_updates.device_buffer import DeviceReplayBuffer
from sb3_energy.files.checksums import TRAILER_BYTES, dump_checked, load_checked
from tests.models import small_model

OBS = spaces.Box(-np.inf, np.inf, (3,), np.float32)
ACTION = spaces.Box(-2.0, 2.0, (1,), np.float32)
DICT = spaces.Dict(vec=OBS)
KINDS = ["langevin", "pgac"]


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return small_model(request.param, buffer_size=60).learn(24)


def saved(folder, buffer):
    with open(folder / "buffer.pkl", "wb") as file:
        pickle.dump(buffer, file)
    return folder / "buffer.pkl"


def refused(model, path):
    """The message; the model keeps its own buffer, and goes on learning from it."""
    before, content = model.replay_buffer, pickle.dumps(model.replay_buffer)
    with pytest.raises(ValueError) as caught:
        model.load_replay_buffer(path)
    assert "\n" not in str(caught.value)
    assert model.replay_buffer is before and pickle.dumps(before) == content
    return str(caught.value)


OTHERS = {
    "observation shape": (ReplayBuffer(5, spaces.Box(-1, 1, (4,)), ACTION), "observation_space"),
    "observation type": (ReplayBuffer(5, spaces.Box(0, 255, (3,), np.uint8), ACTION), "observation_space"),
    "action shape": (ReplayBuffer(5, OBS, spaces.Box(-2.0, 2.0, (2,))), "action_space"),
    "action bounds": (ReplayBuffer(5, OBS, spaces.Box(-1.0, 1.0, (1,))), "action_space"),
    "action type": (ReplayBuffer(5, OBS, spaces.Discrete(3)), "action_space"),
    "environments": (ReplayBuffer(10, OBS, ACTION, n_envs=2), "1 environments, .* got 2"),
    "dictionary": (DictReplayBuffer(5, DICT, ACTION), "observation_space"),
    "n-step returns": (NStepReplayBuffer(5, OBS, ACTION, n_steps=3), "n_steps=1, got one of n_steps=3"),
    "discount": (NStepReplayBuffer(5, OBS, ACTION, n_steps=1, gamma=0.5), "gamma=0.99, got one of gamma=0.5"),
    "no buffer": ([1, 2, 3], "no saved replay buffer: it holds a list"),
    "a model": (dict(policy=3), "no saved replay buffer: it holds a dict"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_buffer_of_something_else_is_refused(model, tmp_path, what):
    buffer, words = OTHERS[what]
    with pytest.raises(ValueError, match=words):
        model.load_replay_buffer(saved(tmp_path, buffer))
    refused(model, tmp_path / "buffer")
    model.learn(2, reset_num_timesteps=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_buffer_of_another_class_is_refused(kind, tmp_path):
    on_device = small_model(kind, buffer_size=60, replay_buffer_class=DeviceReplayBuffer)
    plain = small_model(kind, buffer_size=60)
    plain.save_replay_buffer(tmp_path / "plain")
    on_device.save_replay_buffer(tmp_path / "on_device")
    words = "the replay buffer must be a DeviceReplayBuffer, the model's replay_buffer_class, got a ReplayBuffer"
    assert refused(on_device, tmp_path / "plain") == words
    plain.load_replay_buffer(tmp_path / "on_device")  # can do whatever the model asks of its own
    assert isinstance(plain.replay_buffer, DeviceReplayBuffer) and plain.learn(24)
    n_steps = small_model(kind, buffer_size=60, n_steps=3)
    assert "must be a NStepReplayBuffer" in refused(n_steps, tmp_path / "plain")


@pytest.mark.parametrize("kind", KINDS)
def test_dictionaries(kind, tmp_path):
    model = small_model(kind, "MultiInputPolicy", SimpleMultiObsEnv(num_col=2, num_row=2, discrete_actions=False))
    model.learn(24)
    model.save_replay_buffer(tmp_path / "buffer")
    before = model.replay_buffer
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer is not before and model.learn(24)
    less = spaces.Dict({key: space for key, space in model.observation_space.items() if key != "vec"})
    assert "observation_space" in refused(model, saved(tmp_path, DictReplayBuffer(5, less, model.action_space)))
    assert "observation_space" in refused(model, saved(tmp_path, ReplayBuffer(5, OBS, model.action_space)))


@pytest.mark.parametrize("kind", KINDS)
def test_hindsight(kind, tmp_path):
    env = BitFlippingEnv(n_bits=4, continuous=True, max_steps=4)
    model = small_model(kind, "MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer).learn(24)
    model.save_replay_buffer(tmp_path / "buffer")
    before = model.replay_buffer
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer is not before and model.replay_buffer.env is model.env and model.learn(24)
    plain = DictReplayBuffer(5, model.observation_space, model.action_space)
    assert "must be a HerReplayBuffer" in refused(model, saved(tmp_path, plain))
    model.save_replay_buffer(tmp_path / "buffer")
    alone = small_model(kind, "MultiInputPolicy", env)
    alone.env = None
    assert "a HerReplayBuffer needs an environment" in refused(alone, tmp_path / "buffer")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["observations", "next_observations", "actions", "rewards"])
@pytest.mark.parametrize("cls", [ReplayBuffer, DeviceReplayBuffer])
def test_what_is_not_finite_is_neither_saved_nor_loaded(tmp_path, cls, name, value):
    model = small_model("langevin", buffer_size=60, replay_buffer_class=cls).learn(24)
    model.save_replay_buffer(tmp_path / "buffer")
    whole = (tmp_path / "buffer.pkl").read_bytes()
    getattr(model.replay_buffer, name)[7] = value
    with pytest.raises(FloatingPointError, match=f"^nothing was saved to .*NaN or infinity in row 7 of its {name}$"):
        model.save_replay_buffer(tmp_path / "buffer")
    assert (tmp_path / "buffer.pkl").read_bytes() == whole and len(list(tmp_path.iterdir())) == 1
    bad = saved(tmp_path, model.replay_buffer)
    model = small_model("langevin", buffer_size=60, replay_buffer_class=cls)
    assert f"must be finite, got NaN or infinity in row 7 of its {name}" in refused(model, bad)


def test_dictionaries_and_chains_that_are_not_finite(tmp_path):
    env = SimpleMultiObsEnv(num_col=2, num_row=2, discrete_actions=False)
    model = small_model("pgac", "MultiInputPolicy", env, persistent_chains=True).learn(24)
    model.replay_buffer.observations["vec"][3] = np.nan
    with pytest.raises(FloatingPointError, match=r"row 3 of its observations\['vec'\]"):
        model.save_replay_buffer(tmp_path / "buffer")
    model.replay_buffer.observations["vec"][3] = 0.0
    model.replay_buffer.chains[5] = np.inf
    with pytest.raises(FloatingPointError, match="row 5 of its chains"):
        model.save_replay_buffer(tmp_path / "buffer")


def test_large_numbers_are_finite(tmp_path):
    """Their sum is not."""
    model = small_model("langevin", buffer_size=60).learn(24)
    model.replay_buffer.rewards[:20] = 3e38
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")


def test_of_several_environments(tmp_path):
    model = small_model("langevin", env=make_vec_env("Pendulum-v1", n_envs=2), buffer_size=60).learn(24)
    model.save_replay_buffer(tmp_path / "buffer")
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.n_envs == 2
    assert "2 environments, as the model is, got 1" in refused(model, saved(tmp_path, ReplayBuffer(5, OBS, ACTION)))


def test_a_class_that_cannot_be_imported(model, tmp_path):
    data = pickle.dumps(ReplayBuffer(5, OBS, ACTION)).replace(b"ReplayBuffer", b"ReplayBuffet")
    (tmp_path / "buffer.pkl").write_bytes(data)
    assert "needs a class that cannot be imported here" in refused(model, tmp_path / "buffer")


def test_sb3_and_this_package_read_each_others_buffers(model, tmp_path):
    sac = SAC("MlpPolicy", "Pendulum-v1", buffer_size=60, learning_starts=30).learn(20)
    sac.save_replay_buffer(tmp_path / "of_sb3")
    model.load_replay_buffer(tmp_path / "of_sb3")
    np.testing.assert_array_equal(model.replay_buffer.observations, sac.replay_buffer.observations)
    model.replay_buffer.actions[0] = 0.25
    model.save_replay_buffer(tmp_path / "ours")
    sac.load_replay_buffer(tmp_path / "ours")
    np.testing.assert_array_equal(sac.replay_buffer.actions, model.replay_buffer.actions)
    assert isinstance(load_from_pkl(tmp_path / "ours"), ReplayBuffer)


def test_a_stream_is_left_behind_the_buffer(model):
    """Whatever stands before and after it in the same stream is somebody else's."""
    stream = io.BytesIO()
    pickle.dump("before", stream)
    model.save_replay_buffer(stream)
    pickle.dump("after", stream)
    stream.seek(0)
    assert pickle.load(stream) == "before"
    model.load_replay_buffer(stream)
    assert pickle.load(stream) == "after"
    data = bytearray(stream.getvalue())
    data[len(data) // 2] ^= 1
    stream = io.BytesIO(data)
    pickle.load(stream)
    refused(model, stream)


def test_checked_pickles(tmp_path):
    stream = io.BytesIO()
    dump_checked(list(range(1000)), stream)
    whole = stream.getvalue()
    assert load_checked(io.BytesIO(whole), is_alone=True) == pickle.loads(whole) == list(range(1000))
    assert load_checked(io.BytesIO(whole[:-TRAILER_BYTES]), is_alone=True) == list(range(1000)), "a plain pickle"
    for cut in (1, TRAILER_BYTES - 1):
        with pytest.raises(Exception, match="its end has changed"):
            load_checked(io.BytesIO(whole[:-cut]), is_alone=True)
    for at in range(len(whole)):
        with pytest.raises(Exception, match=r"its end has changed|its checksum is wrong"):
            load_checked(io.BytesIO(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]), is_alone=True)
