"""Data sets from every source, each made here by hand or by the library that it belongs to; damaged ones are refused."""

import io

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env

from sb3_energy import DeviceReplayBuffer, EnergySAC
from sb3_energy.offline.loading import load_dataset
from tests.offline.small_clone import BOX, PLANE, Reach, small

OBS = np.arange(30, dtype=np.float32).reshape(10, 3)
ACTIONS = np.linspace(-1.0, 1.0, 20, dtype=np.float32).reshape(10, 2)
LAST = np.array([0, 0, 0, 0, 1, 0, 0, 0, 0, 1], dtype=np.float32)


def test_a_dictionary_of_observations_and_actions_is_enough():
    data = load_dataset(dict(observations=OBS, actions=ACTIONS))
    assert len(data) == 10 and data.n_episodes == 1 and data.rewards is None and data.next_observations is None
    assert data.observation_space == PLANE and data.action_space == spaces.Box(-1.0, 1.0, (2,))
    assert load_dataset(dict(observations=OBS[:, 0], actions=ACTIONS[:, 0])).observations.shape == (10, 1)
    assert load_dataset(data) is data


def test_d4rls_names():
    timeouts = np.array([0, 0, 0, 0, 1, 0, 0, 0, 0, 0])
    terminals = np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 1], dtype=bool)
    found = dict(observations=OBS, actions=ACTIONS, rewards=OBS[:, 0], terminals=terminals, timeouts=timeouts)
    data = load_dataset(found | {"infos/goal": OBS, "metadata": 3})
    assert data.n_episodes == 2 and data.truncations.tolist() == timeouts.astype(bool).tolist()
    assert data.terminations.tolist() == terminals.tolist() and data.are_whole.all()


def test_ogbenchs_masks_end_the_value_and_terminals_the_trajectory():
    """Its regular form. The goal is reached in row 2, and the trajectory goes on."""
    masks = 1.0 - np.array([0, 0, 1, 0, 0, 0, 0, 0, 0, 1])
    data = load_dataset(
        dict(observations=OBS, actions=ACTIONS, next_observations=OBS + 3, terminals=LAST, masks=masks, rewards=masks - 1.0)
    )
    assert data.n_episodes == 2 and data.episode_ends.tolist() == LAST.astype(bool).tolist()
    assert np.flatnonzero(data.terminations).tolist() == [2, 9] and np.flatnonzero(data.truncations).tolist() == [4]


def ogbench_file():
    """As it is on disk: two trajectories of four transitions, with one more observation in each."""
    return dict(observations=OBS, actions=ACTIONS, terminals=LAST, qpos=OBS[:, :2])


def ogbench_regular():
    """What ``ogbench.load_dataset`` makes of it: terminals one row earlier, and next observations."""
    keep = LAST == 0
    following = np.concatenate([[False], keep[:-1]])
    terminals = np.concatenate([LAST[1:], [1.0]])
    columns = dict(observations=OBS[keep], actions=ACTIONS[keep], next_observations=OBS[following], terminals=terminals[keep])
    return columns


def ogbench_compact():
    """And its compact form."""
    terminals = np.minimum(LAST + np.concatenate([LAST[1:], [1.0]]), 1.0)
    return dict(observations=OBS, actions=ACTIONS, terminals=terminals, valids=1.0 - LAST)


@pytest.mark.parametrize("form", [ogbench_file, ogbench_regular, ogbench_compact])
def test_the_three_forms_of_ogbench_are_the_same_transitions(tmp_path, form):
    np.savez(tmp_path / "cube-play-v0.npz", **form())
    data = load_dataset(tmp_path / "cube-play-v0.npz").with_next_observations()
    assert data.observations[:, 0].tolist() == [0, 3, 6, 9, 15, 18, 21, 24]
    assert data.next_observations[:, 0].tolist() == [3, 6, 9, 12, 18, 21, 24, 27]
    assert np.flatnonzero(data.episode_ends).tolist() == [3, 7] and data.n_episodes == 2
    assert not data.terminations.any() and np.flatnonzero(data.truncations).tolist() == [3, 7]
    assert np.array_equal(data.actions, np.delete(ACTIONS, [4, 9], axis=0))


def test_a_compact_form_with_masks_and_dictionaries():
    parts = {"arm": OBS, "goal": -OBS[:, :1]}
    masks = np.array([1, 1, 1, 0, 1, 1, 1, 1, 1, 1])
    data = load_dataset(ogbench_compact() | dict(observations=parts, masks=masks, rewards=OBS[:, 0]))
    assert data.next_observations["goal"][:, 0].tolist() == [-3, -6, -9, -12, -18, -21, -24, -27]
    assert np.flatnonzero(data.terminations).tolist() == [3] and np.flatnonzero(data.truncations).tolist() == [7]
    with pytest.raises(ValueError, match=r"valids must be 0 in the last row"):
        load_dataset(ogbench_compact() | dict(valids=np.ones(10)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(reward=OBS[:, 0]), "a data set has no column 'reward'; did you mean 'rewards'?"),
        (
            dict(terminals=LAST, dones=LAST),
            r"a data set must have one of \['terminals', 'dones'\], which mean the same, got 2",
        ),
        (
            dict(actions=2.0 * ACTIONS),
            "actions must lie in the box of the action space, got -2 in row 0 .*; give the data's action_space",
        ),
        (dict(actions=ACTIONS[:5]), "there must be as many rows of observations as of actions, got 10 and 5"),
        (dict(actions=ACTIONS[:0], observations=OBS[:0]), "actions must have at least one row, got none"),
        (dict(masks=np.full(10, 2)), "masks must be 0 or 1, got another value in row 0"),
    ],
)
def test_wrong_dictionaries_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        load_dataset(dict(observations=OBS, actions=ACTIONS) | changes)


def test_missing_columns_are_named():
    with pytest.raises(ValueError, match=r"a data set must have actions, got only \['observations'\]"):
        load_dataset(dict(observations=OBS))
    with pytest.raises(TypeError, match=r"source must be an OfflineDataset, a Minari data set, .*, got int"):
        load_dataset(3)


def test_spaces_are_given_or_taken_from_an_environment():
    columns = dict(observations=OBS, actions=1.5 * ACTIONS)
    assert load_dataset(columns, action_space=BOX.__class__(-2.0, 2.0, (2,))).action_space.high[0] == 2.0
    inside = dict(observations=OBS, actions=np.clip(ACTIONS, BOX.low, BOX.high))
    assert load_dataset(inside, env=Reach()).action_space == BOX
    with pytest.raises(ValueError, match=r"env takes the place of observation_space and action_space"):
        load_dataset(inside, action_space=BOX, env=Reach())
    with pytest.raises(ValueError, match=r"action_space must be that of the data, .*, got Box"):
        load_dataset(load_dataset(inside, env=Reach()), action_space=spaces.Box(-9.0, 9.0, (2,)))


def filled(buffer, n, space=PLANE):
    """Steps whose observations count; ends in step 3 (a termination), 6 (a time limit)."""
    for i in range(n):
        seen, following = np.full((buffer.n_envs, 3), i, np.float32), np.full((buffer.n_envs, 3), i + 1, np.float32)
        seen += 100.0 * np.arange(buffer.n_envs)[:, None]
        following += 100.0 * np.arange(buffer.n_envs)[:, None]
        if isinstance(buffer, DictReplayBuffer):
            seen, following = dict(a=seen), dict(a=following)
        done = np.full(buffer.n_envs, i in (3, 6))
        infos = [{"TimeLimit.truncated": i == 6}] * buffer.n_envs
        buffer.add(seen, following, np.full((buffer.n_envs, 2), i / 10.0 - 0.5), np.full(buffer.n_envs, float(i)), done, infos)
    return buffer


@pytest.mark.parametrize("kind", [ReplayBuffer, DeviceReplayBuffer, DictReplayBuffer])
def test_a_replay_buffer_gives_its_transitions_oldest_first(kind):
    space = spaces.Dict(a=PLANE) if kind is DictReplayBuffer else PLANE
    data = load_dataset(filled(kind(16, space, BOX, device="cpu", n_envs=2), 10))
    seen = data.observations["a"] if kind is DictReplayBuffer else data.observations
    assert seen[:, 0].tolist() == [*range(2, 10), *range(102, 110)], "eight of each environment fit"
    assert data.rewards.tolist() == [*range(2, 10)] * 2
    scaled = np.arange(2, 10) / 10.0 - 0.5
    for coordinate in (0, 1):
        low, high = BOX.low[coordinate], BOX.high[coordinate]
        assert np.allclose(data.actions[:8, coordinate], low + 0.5 * (scaled + 1.0) * (high - low)), "in the box's units"
    assert np.flatnonzero(data.terminations).tolist() == [1, 9] and np.flatnonzero(data.truncations).tolist() == [4, 12]
    assert np.flatnonzero(data.episode_ends).tolist() == [1, 4, 7, 9, 12, 15]
    assert data.are_whole.tolist() == [True, True, False] * 2


def test_a_replay_buffer_with_one_copy_of_each_observation():
    buffer = ReplayBuffer(8, PLANE, BOX, "cpu", optimize_memory_usage=True, handle_timeout_termination=False)
    data = load_dataset(filled(buffer, 5))
    assert data.observations[:, 0].tolist() == [0, 1, 2, 3, 4] and data.next_observations[:, 0].tolist() == [1, 2, 3, 4, 5]
    data = load_dataset(filled(buffer, 10))
    assert data.observations[:, 0].tolist() == [*range(3, 10)] and data.next_observations[:, 0].tolist() == [*range(4, 11)]


def test_an_episode_that_was_left_ends_in_the_data():
    buffer = ReplayBuffer(20, PLANE, BOX, "cpu")
    for _ in range(2):  # as by two calls of learn
        filled(buffer, 3)
    assert np.flatnonzero(load_dataset(buffer).episode_ends).tolist() == [2, 5]
    with pytest.raises(ValueError, match=r"the replay buffer must have at least one transition, got an empty one"):
        load_dataset(ReplayBuffer(20, PLANE, BOX, "cpu"))
    with pytest.raises(ValueError, match=r"the action space must be a Box"):
        buffer = ReplayBuffer(4, PLANE, spaces.Discrete(2), "cpu")
        buffer.add(np.zeros(3), np.zeros(3), np.zeros(1), np.zeros(1), np.zeros(1), [{}])
        load_dataset(buffer)


@pytest.mark.parametrize("algorithm", [SAC, EnergySAC])
def test_the_file_of_an_agents_replay_buffer_and_training_on_it(tmp_path, algorithm):
    agent = algorithm("MlpPolicy", make_vec_env(Reach, 2), learning_starts=100, device="cpu", seed=0).learn(40)
    agent.save_replay_buffer(tmp_path / "buffer")
    data = load_dataset(tmp_path / "buffer.pkl")
    assert len(data) == 40 and data.action_space == BOX and data.n_episodes == 8 and data.are_whole.all()
    assert np.ptp(data.actions, axis=0).min() > 2.0, "uniform on a box of width 4"
    small(tmp_path / "buffer.pkl", env=Reach()).learn(3)
    content = (tmp_path / "buffer.pkl").read_bytes()
    (tmp_path / "half.pkl").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"half.pkl is no saved replay buffer"):
        load_dataset(tmp_path / "half.pkl")


def hdf5(path, **columns):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            file[name] = column
    return path


def test_d4rls_hdf5(tmp_path):
    columns = {"observations": OBS, "actions": ACTIONS, "rewards": OBS[:, 0], "terminals": LAST, "timeouts": 0.0 * LAST}
    path = hdf5(tmp_path / "hopper-v2.hdf5", **columns, **{"infos/qpos": OBS, "metadata/algorithm": "SAC"})
    data = load_dataset(str(path))
    assert np.array_equal(data.observations, OBS) and data.n_episodes == 2 and data.terminations.sum() == 2
    parts = {"observations/arm": OBS, "observations/goal": OBS[:, :1], "actions": ACTIONS}
    data = load_dataset(hdf5(tmp_path / "parts.h5", **parts))
    assert set(data.observations) == {"arm", "goal"}
    with pytest.raises(ValueError, match=r"a data set must have observations, got only \['actions'\]"):
        load_dataset(hdf5(tmp_path / "lacks.h5", actions=ACTIONS))


@pytest.mark.parametrize("kind", ["npz", "hdf5"])
def test_damaged_files_are_refused_in_one_sentence(tmp_path, kind):
    columns = dict(observations=np.tile(OBS, (40, 1)), actions=np.tile(ACTIONS, (40, 1)))
    path = tmp_path / f"data.{kind}"
    if kind == "npz":
        np.savez(path, **columns)
    else:
        hdf5(path, **columns)
    content = path.read_bytes()
    for damage in (content[: len(content) // 2], content[:20], b"", b"\x89PNG of something else"):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"is no saved data set") as caught:
            load_dataset(path)
        assert "\n" not in str(caught.value)


def test_a_changed_byte_of_an_npz_is_noticed(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, observations=OBS, actions=ACTIONS)
    content = bytearray(path.read_bytes())
    content[content.index(OBS.tobytes()) + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"data.npz is no saved data set: 'observations.npy' in it is damaged"):
        load_dataset(path)


def test_reading_an_npz_runs_no_code(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, observations=np.array([print, 3], dtype=object), actions=ACTIONS)
    with pytest.raises(ValueError, match=r"is no saved data set, or it is damaged .*allow_pickle"):
        load_dataset(path)
    small().save(tmp_path / "model")
    with pytest.raises(
        ValueError, match=r"model.zip is no saved data set to learn from: a data set must have observations, got"
    ):
        load_dataset(tmp_path / "model.zip")


def test_what_is_no_file_is_looked_for_elsewhere(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing.npz"):
        load_dataset(tmp_path / "missing.npz")
    with pytest.raises(FileNotFoundError, match=r"missing.hdf5"):
        load_dataset("missing.hdf5")
    with pytest.raises(ValueError, match=r"is no saved data set: it is a folder, and not one of Minari's"):
        load_dataset(tmp_path)
    file = io.BytesIO()
    np.savez(file, observations=OBS, actions=ACTIONS)
    file.seek(0)
    assert len(load_dataset(file)) == 10


def test_h5py_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    path = hdf5(tmp_path / "data.hdf5", observations=OBS, actions=ACTIONS)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(ImportError, match=r"data.hdf5 is an HDF5 file and needs h5py: pip install 'sb3-energy\[offline\]'"):
        load_dataset(path)
