"""Data sets of Minari, which the extra ``offline`` installs."""

import warnings
from inspect import signature
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_energy.files.checksums import DamagedError
from sb3_energy.files.errors import explained
from sb3_energy.offline.columns import check_dataset_spaces, mapped
from sb3_energy.offline.offline_dataset import OfflineDataset

WHAT = "Minari data set"


def is_minari(source: Any) -> bool:
    """
    Recognise a Minari data set without importing Minari.

    :param source: anything
    :return: whether it has what is read of one
    """
    return all(hasattr(source, name) for name in ("iterate_episodes", "observation_space", "action_space"))


def open_minari(dataset_id: str, download: bool = False) -> Any:
    """
    Find a Minari data set by its id.

    :param dataset_id: such as ``"D4RL/pen/human-v2"``
    :param download: whether to fetch one that is not in Minari's folder on this machine
    :return: Minari's own object
    :raises ImportError: without Minari
    :raises FileNotFoundError: if it is not on this machine and must not be fetched
    :raises ValueError: if it is damaged
    """
    minari = _imported(f"the data set {dataset_id!r}")
    if not download and not (minari.storage.get_dataset_path(dataset_id) / "data").exists():
        raise FileNotFoundError(
            2, "No file and no Minari data set of this name on this machine; download=True fetches the latter", dataset_id
        )
    with explained(dataset_id, WHAT):
        return minari.load_dataset(dataset_id, download=download)


def open_minari_folder(folder: Path) -> Any:
    """
    Open a Minari data set that is not in Minari's own folder.

    :param folder: with ``data/main_data.hdf5``, or with that file
    :return: Minari's own object
    :raises ImportError: without Minari
    :raises ValueError: if there is none in it, or it is damaged
    """
    place = folder / "data" if (folder / "data").is_dir() else folder
    if not (place / "metadata.json").is_file():
        raise ValueError(f"{folder} is no saved data set: it is a folder, and not one of Minari's")
    minari = _imported(f"the folder {folder}")
    with explained(folder, WHAT):
        return minari.MinariDataset(place)


def from_minari(dataset: Any) -> OfflineDataset:
    """
    Make a data set of the episodes of a Minari data set.

    :param dataset: Minari's own object
    :return: its transitions
    :raises ValueError: if it is empty or damaged, or its spaces are not supported
    """
    check_dataset_spaces(dataset.observation_space, dataset.action_space)
    name = getattr(getattr(dataset, "spec", None), "dataset_id", dataset)
    with explained(name, WHAT):
        episodes = [_columns(episode, dataset.observation_space) for episode in dataset.iterate_episodes()]
        if not episodes:
            raise DamagedError("it has no episode")
        joined = {key: _joined([episode[key] for episode in episodes]) for key in episodes[0]}
    return OfflineDataset(observation_space=dataset.observation_space, action_space=dataset.action_space, **joined)


def _columns(episode: Any, space: spaces.Space) -> dict[str, Any]:
    """Of an episode of ``T`` steps, which has ``T + 1`` observations."""
    n = len(episode.rewards)
    lengths = [len(part) for part in _arrays(episode.observations, space)]
    if set(lengths) != {n + 1}:
        raise DamagedError(f"episode {episode.id} must have {n + 1} observations for its {n} rewards, got {lengths}")
    ends = np.zeros(n, dtype=bool)
    ends[-1:] = True
    return dict(
        observations=mapped(episode.observations, lambda part: np.asarray(part)[:-1]),
        next_observations=mapped(episode.observations, lambda part: np.asarray(part)[1:]),
        actions=np.asarray(episode.actions),
        rewards=np.asarray(episode.rewards),
        terminations=np.asarray(episode.terminations),
        truncations=np.asarray(episode.truncations),
        episode_ends=ends,
    )


def _arrays(column: Any, space: spaces.Space) -> list[Any]:
    return list(column.values()) if isinstance(space, spaces.Dict) else [column]


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], dict):
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return np.concatenate(parts)


def check_new_id(dataset_id: str) -> None:
    """
    Check that a data set can be written under an id, before anything is recorded for it.

    :param dataset_id: Minari's form: ``namespace/name-v0``, the namespace may be left out
    :raises ImportError: without Minari
    :raises ValueError: if there is one already, or the id has another form
    """
    minari = _imported(f"dataset_id={dataset_id!r}")
    if not isinstance(dataset_id, str) or minari.dataset.minari_dataset.DATASET_ID_RE.fullmatch(dataset_id) is None:
        raise ValueError(f"dataset_id must have Minari's form, (namespace/)name-v(version), got {dataset_id!r}")
    if minari.storage.get_dataset_path(dataset_id).exists():
        raise ValueError(f"dataset_id must be a new one, got {dataset_id!r}, of which there is a Minari data set already")


def save_minari(dataset: OfflineDataset, dataset_id: str, env: gym.Env | str | None = None) -> Any:
    """
    Write a data set into Minari's folder on this machine.

    :param dataset: the data; they need rewards
    :param dataset_id: its new id, ``namespace/name-v0``; the namespace may be left out
    :param env: of which Minari keeps the name, so that ``recover_environment`` works (``None``: it will not)
    :return: Minari's own object
    :raises ImportError: without Minari
    :raises ValueError: if the id is taken or has another form, or there are no rewards
    """
    check_new_id(dataset_id)
    if dataset.rewards is None:
        raise ValueError("a Minari data set needs rewards, which these data do not have")
    minari = _imported(f"dataset_id={dataset_id!r}")
    buffers = [_buffer(minari, episode) for episode in dataset.with_next_observations().episodes()]
    write = minari.create_dataset_from_buffers
    lossless = dict(jpeg_encoding=False) if "jpeg_encoding" in signature(write).parameters else {}  # since Minari 0.5.4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of authors and permanent links that are not given
        return write(
            dataset_id,
            buffers,
            env=env,
            observation_space=dataset.observation_space,
            action_space=dataset.action_space,
            **lossless,
        )


def _buffer(minari: Any, episode: OfflineDataset) -> Any:
    def appended(part: Any, last: Any) -> Any:
        return np.concatenate([part, last[-1:]])

    observations, following = episode.observations, episode.next_observations
    if isinstance(observations, dict) and isinstance(following, dict):
        joined: Any = {key: appended(part, following[key]) for key, part in observations.items()}
    else:
        joined = appended(observations, following)
    flags = {name: getattr(episode, name) for name in ("terminations", "truncations")}
    return minari.data_collector.EpisodeBuffer(
        observations=joined, actions=episode.actions, rewards=episode.rewards, infos={}, **flags
    )


def _imported(what: str) -> Any:
    try:
        import minari
    except ImportError as error:
        raise ImportError(f"{what} needs Minari: pip install 'sb3-energy[offline]'") from error
    return minari
