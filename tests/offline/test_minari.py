"""Minari's data sets: written here by Minari itself, by hand, and by record_dataset."""

import json

import numpy as np
import pytest
from gymnasium import spaces

from sb3_energy.offline.loading import load_dataset
from sb3_energy.offline.offline_dataset import OfflineDataset
from sb3_energy.offline.sources.minari import save_minari
from tests.offline.small_clone import BOX, PLANE, data, small

minari = pytest.importorskip("minari")
h5py = pytest.importorskip("h5py")
OBS = np.arange(30, dtype=np.float32).reshape(10, 3)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def episode(rows, ends_by):
    n = len(OBS[rows]) - 1
    flags = np.arange(n) == n - 1
    return minari.data_collector.EpisodeBuffer(
        observations=OBS[rows],
        actions=np.full((n, 2), 0.5, np.float32),
        rewards=np.arange(n, dtype=np.float64),
        terminations=flags & (ends_by == "termination"),
        truncations=flags & (ends_by == "truncation"),
        infos={},
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", ["object", "id", "folder"])
def test_minaris_own(own_folder, form):
    buffers = [episode(slice(0, 4), "termination"), episode(slice(4, 7), "truncation"), episode(slice(7, 9), None)]
    made = minari.create_dataset_from_buffers("group/reach-v0", buffers, observation_space=PLANE, action_space=BOX)
    source = dict(object=made, id="group/reach-v0", folder=own_folder / "group" / "reach-v0")[form]
    dataset = load_dataset(source)
    assert dataset.observations[:, 0].tolist() == [0, 3, 6, 12, 15, 21]
    assert dataset.next_observations[:, 0].tolist() == [3, 6, 9, 15, 18, 24]
    assert np.flatnonzero(dataset.terminations).tolist() == [2] and np.flatnonzero(dataset.truncations).tolist() == [4]
    assert dataset.returns.tolist() == [3.0, 1.0, 0.0] and dataset.are_whole.tolist() == [True, True, False]
    assert (dataset.observation_space, dataset.action_space) == (PLANE, BOX)
    assert load_dataset(made.filter_episodes(lambda one: one.terminations[-1])).n_episodes == 1


def by_hand(folder, **changes):
    """A Minari data set of one episode without Minari: its HDF5 file and its metadata."""
    place = folder / "hand-v0" / "data"
    place.mkdir(parents=True)
    columns = dict(
        observations=OBS[:5],
        actions=np.zeros((4, 2), np.float32),
        rewards=np.ones(4),
        terminations=np.array([False, False, False, True]),
        truncations=np.zeros(4, dtype=bool),
    )
    with h5py.File(place / "main_data.hdf5", "w") as file:
        for name, column in (columns | changes).items():
            file[f"episode_0/{name}"] = column
    metadata = dict(
        dataset_id="hand-v0",
        minari_version=minari.__version__,
        data_format="hdf5",
        total_episodes=1,
        total_steps=4,
        observation_space=minari.serialization.serialize_space(PLANE),
        action_space=minari.serialization.serialize_space(BOX),
    )
    (place / "metadata.json").write_text(json.dumps(metadata))
    return place


def test_a_file_made_by_hand_trains(own_folder):
    place = by_hand(own_folder)
    dataset = load_dataset("hand-v0")
    assert np.array_equal(dataset.observations, OBS[:4]) and np.array_equal(dataset.next_observations, OBS[1:5])
    small("hand-v0").learn(2)
    with pytest.raises(ValueError, match="it is a part of a Minari data set: pass the data set's folder, or its id"):
        load_dataset(place / "main_data.hdf5")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            dict(observations=OBS[:4]),
            r"hand-v0 is no saved Minari data set: episode 0 must have 5 observations for its 4 rewards",
        ),
        (dict(actions=np.full((4, 2), 9.0)), "actions must lie in the box of the action space, got 9 in row 0"),
        (dict(rewards=np.array([0.0, np.nan, 0.0, 0.0])), "rewards must be finite in single precision, got nan in row 1"),
    ],
)
def test_wrong_content_is_refused(own_folder, changes, words):
    by_hand(own_folder, **changes)
    with pytest.raises(ValueError, match=words):
        load_dataset("hand-v0")


@pytest.mark.parametrize("file", ["main_data.hdf5", "metadata.json"])
def test_damaged_files_are_refused(own_folder, file):
    path = by_hand(own_folder) / file
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="hand-v0 is no saved Minari data set") as caught:
        load_dataset("hand-v0")
    assert "\n" not in str(caught.value)


def test_nothing_is_downloaded_unless_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(minari, "load_dataset", lambda name, download: asked.append((name, download)) or 3)
    with pytest.raises(FileNotFoundError, match="no Minari data set of this name on this machine; download=True fetches"):
        load_dataset("D4RL/pen/human-v2")
    with pytest.raises(TypeError, match="got int"):
        load_dataset("D4RL/pen/human-v2", download=True)
    assert asked == [("D4RL/pen/human-v2", True)]


def test_minari_is_asked_for_where_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "minari", None)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.json").write_text("{}")
    for source in ("D4RL/pen/human-v2", tmp_path):
        with pytest.raises(ImportError, match=r"needs Minari: pip install 'sb3-energy\[offline\]'"):
            load_dataset(source)


IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
BOTH = spaces.Dict(camera=IMAGE, arm=PLANE)


@pytest.mark.parametrize("space", [PLANE, IMAGE, BOTH], ids=["vector", "image", "dictionary"])
def test_what_is_written_comes_back(space):
    space.seed(0)
    seen = [space.sample() for _ in range(41)]
    column = {key: np.stack([one[key] for one in seen]) for key in space} if space is BOTH else np.stack(seen)
    dataset = data(
        40,
        observations={key: part[:40] for key, part in column.items()} if space is BOTH else column[:40],
        next_observations={key: part[1:] for key, part in column.items()} if space is BOTH else column[1:],
        observation_space=space,
    )
    save_minari(dataset, "again/again-v3")
    again = load_dataset("again/again-v3")
    for name in ("actions", "rewards", "terminations", "truncations", "episode_ends"):
        assert np.array_equal(getattr(again, name), getattr(dataset, name)), name
    for old, new in zip(_parts(dataset), _parts(again), strict=True):
        assert np.array_equal(old, new) and old.dtype == new.dtype
    assert again.observation_space == dataset.observation_space
    with pytest.raises(ValueError, match="dataset_id must be a new one, got 'again/again-v3'"):
        save_minari(dataset, "again/again-v3")
    with pytest.raises(ValueError, match="dataset_id must have Minari's form"):
        save_minari(dataset, "no version")


def _parts(dataset: OfflineDataset):
    for column in (dataset.observations, dataset.next_observations):
        yield from [column[key] for key in sorted(column)] if isinstance(column, dict) else [column]


def test_rewards_are_needed():
    with pytest.raises(ValueError, match="a Minari data set needs rewards"):
        save_minari(data(rewards=None), "x-v0")
