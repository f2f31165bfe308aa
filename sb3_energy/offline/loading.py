"""Data sets from wherever transitions are kept."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import GymEnv

from sb3_energy.checks import check_bool
from sb3_energy.offline.columns import check_dataset_spaces
from sb3_energy.offline.offline_dataset import SPACES, OfflineDataset
from sb3_energy.offline.sources.dictionary import from_arrays
from sb3_energy.offline.sources.files import kind_of, read_hdf5, read_npz
from sb3_energy.offline.sources.minari import from_minari, is_minari, open_minari, open_minari_folder
from sb3_energy.offline.sources.replay_buffer import from_replay_buffer
from sb3_energy.training.buffer_files import read_buffer, same_space

SOURCES = (
    "an OfflineDataset, a Minari data set, its folder or its id, a ReplayBuffer, a dictionary of arrays, or the path of a "
    "file (NPZ, HDF5, or a replay buffer's pickle)"
)


def load_dataset(
    source: Any,
    observation_space: spaces.Space | None = None,
    action_space: spaces.Space | None = None,
    env: GymEnv | str | None = None,
    download: bool = False,
) -> OfflineDataset:
    """
    Load a data set.

    * a **Minari** data set, its folder, or its id (extra ``offline``),
    * a **replay buffer** of Stable-Baselines3, or the file of ``save_replay_buffer``. Reading that file runs code that it
      contains: load only files of people you trust,
    * an **NPZ** file, of :meth:`~sb3_energy.offline.offline_dataset.OfflineDataset.save` or of OGBench,
    * an **HDF5** file as D4RL has them (extra ``offline``),
    * a **dictionary of arrays**, see :func:`sb3_energy.offline.sources.dictionary.from_arrays`.

    Minari, replay buffers and files of ``save`` know their spaces. Other files and arrays do not: observations are then
    unbounded, or images if they are bytes of three axes, and actions lie in [-1, 1], as those of D4RL and OGBench do.

    :param source: where the data are
    :param observation_space: of the data (``None``: as above)
    :param action_space: of the data (``None``: as above)
    :param env: an environment with the spaces of the data (if registered in Gym, can be str), in place of the two
    :param download: whether a Minari data set that is not on this machine may be fetched
    :return: the checked data
    :raises TypeError: if the source is of another kind
    :raises FileNotFoundError: if there is no such file or data set
    :raises ImportError: if a package is missing that reads it
    :raises ValueError: if a file is damaged, or something is wrong with the data; it names the field and the row
    """
    if env is not None and (observation_space is not None or action_space is not None):
        raise ValueError("env takes the place of observation_space and action_space, got it beside one of these")
    if env is not None:
        env = maybe_make_env(env, verbose=0)
        observation_space, action_space = env.observation_space, env.action_space
        check_dataset_spaces(observation_space, action_space)
    given = dict(observation_space=observation_space, action_space=action_space)
    found, is_file = _opened(source, check_bool("download", download))
    try:
        return _checked(found, given)
    except (TypeError, ValueError) as error:
        if not is_file:
            raise
        raise ValueError(f"{source} is no saved data set to learn from: {error}") from error


def _opened(source: Any, download: bool) -> tuple[Any, bool]:
    """The source itself, or what is in its file, and whether it was a file."""
    if hasattr(source, "read"):
        return _of_file(source), True
    if not isinstance(source, (str, Path)):
        return source, False
    for path in (Path(source), Path(f"{source}.npz")):
        if path.is_file():
            return _of_file(path), True
    if Path(source).is_dir():
        return open_minari_folder(Path(source)), False
    if isinstance(source, str) and re.search(r"-v\d+$", source):
        return open_minari(source, download), False
    raise FileNotFoundError(2, "No such file or directory, and no name of a Minari data set", str(source))


def _of_file(path: Any) -> Any:
    kind = kind_of(path)
    if kind == "npz":
        return read_npz(path)
    if kind == "hdf5":
        return read_hdf5(path)
    if kind == "pickle":
        return read_buffer(path)
    raise ValueError(f"{path} is no saved data set: it is neither an NPZ nor an HDF5 file nor the pickle of a replay buffer")


def _checked(found: Any, given: dict[str, Any]) -> OfflineDataset:
    """A data set of what a source holds, in the spaces that are given."""
    if isinstance(found, Mapping):
        columns = dict(found)
        for name in SPACES:
            own = columns.pop(name, None)
            given[name] = own if given[name] is None else given[name]
        return from_arrays(columns, **given)
    dataset = _made(found)
    for name, expected in given.items():
        if expected is not None and not same_space(getattr(dataset, name), expected, name == "action_space", any_float=True):
            raise ValueError(f"{name} must be that of the data, {getattr(dataset, name)}, got {expected}")
    return dataset


def _made(source: Any) -> OfflineDataset:
    if isinstance(source, OfflineDataset):
        return source
    if isinstance(source, ReplayBuffer):
        return from_replay_buffer(source)
    if is_minari(source):
        return from_minari(source)
    raise TypeError(f"source must be {SOURCES}, got {type(source).__name__}")
