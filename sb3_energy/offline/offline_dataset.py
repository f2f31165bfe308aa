"""Recorded transitions, in the order of their trajectories: what offline algorithms learn from."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_energy.checks import check_integer, check_part
from sb3_energy.files.atomic import PathOrFile, write_whole
from sb3_energy.offline.columns import (
    Column,
    check_dataset_spaces,
    checked_actions,
    checked_flags,
    checked_observations,
    checked_rewards,
    mapped,
    to_channels_first,
)
from sb3_energy.offline.space_files import space_to_json

SPACES = ("observation_space", "action_space")


class Batch(NamedTuple):
    """
    ``B`` rows of a data set as tensors. Columns that the data lack are ``None``.

    :param observations: ``(B, *O)``, or a dictionary of such
    :param actions: ``(B, *A)``, in the units of the environment
    :param rewards: ``(B,)``
    :param next_observations: as ``observations``
    :param dones: ``(B,)``, 1 where the return ends with this row, so that the value of the next observation does not count
    """

    observations: PyTorchObs
    actions: th.Tensor
    rewards: th.Tensor | None
    next_observations: PyTorchObs | None
    dones: th.Tensor

    def to(self, device: th.device) -> "Batch":
        """
        Put the rows on a device.

        :param device: where to
        :return: the same rows there
        """
        return Batch(*(mapped(column, lambda part: part.to(device, non_blocking=True)) for column in self))


@dataclass(frozen=True, eq=False)
class OfflineDataset:
    """
    ``n`` transitions in the order in which they happened, one episode after the other. Images become channels-first, as
    Stable-Baselines3 makes them of environments; they stay bytes. Other observations, actions and rewards are kept in single
    precision. Actions are in the units of the environment.

    ``terminations`` and ``episode_ends`` are two things. A termination ends the return: no value is added behind it. An
    episode also ends where a time limit cut it off (``truncations``), or where the recording stopped.

    :param observations: ``(n, *O)``, or a dictionary of such
    :param actions: ``(n, *A)``, inside the box
    :param observation_space: a ``Box``, a discrete one, or a flat ``Dict`` of these
    :param action_space: a ``Box`` with finite bounds
    :param rewards: ``(n,)``
    :param next_observations: as ``observations`` (``None``: the next row's, see :meth:`with_next_observations`)
    :param terminations: ``(n,)``, where the return ends (``None``: nowhere)
    :param truncations: ``(n,)``, where an episode was cut off (``None``: nowhere)
    :param episode_ends: ``(n,)``, last rows of episodes (``None``: terminations and truncations). The last row is one always
    :raises ValueError: if a shape, a number of rows or a space is wrong, a number is NaN or infinity, an action lies outside
        of the box, or there are no rows; it names the field and the row
    :raises TypeError: if something is not an array of numbers
    """

    observations: Column
    actions: np.ndarray
    observation_space: spaces.Space
    action_space: spaces.Box
    rewards: np.ndarray | None = None
    next_observations: Column | None = None
    terminations: np.ndarray | None = None
    truncations: np.ndarray | None = None
    episode_ends: np.ndarray | None = None

    def __post_init__(self) -> None:
        space, action_space = self.observation_space, self.action_space
        check_dataset_spaces(space, action_space)
        actions = checked_actions(self.actions, action_space)
        n = len(actions)
        terminations, truncations = (
            checked_flags(name, getattr(self, name), n, "actions") for name in ("terminations", "truncations")
        )
        ends = terminations | truncations
        if self.episode_ends is not None:
            ends = checked_flags("episode_ends", self.episode_ends, n, "actions")
        ends = ends.copy()
        ends[-1] = True
        checked: dict[str, Any] = dict(
            observations=checked_observations("observations", self.observations, space, n),
            actions=actions,
            rewards=None if self.rewards is None else checked_rewards(self.rewards, n),
            next_observations=self.next_observations,
            terminations=terminations,
            truncations=truncations,
            episode_ends=ends,
        )
        if self.next_observations is not None:
            checked["next_observations"] = checked_observations("next_observations", self.next_observations, space, n)
        for name in ("observations", "next_observations"):
            checked[name] = to_channels_first(checked[name], space)[0]
        checked["observation_space"] = to_channels_first(None, space)[1]
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.actions)

    def __repr__(self) -> str:
        return (
            f"OfflineDataset({len(self)} transitions, {self.n_episodes} episodes, observation_space={self.observation_space}, "
            f"action_space={self.action_space})"
        )

    @property
    def n_episodes(self) -> int:
        """Number of episodes, those included that the recording cut off."""
        return int(self._ends.sum())

    @property
    def _ends(self) -> np.ndarray:
        assert self.episode_ends is not None
        return self.episode_ends

    @property
    def are_whole(self) -> np.ndarray:
        """``(n_episodes,)``, which episodes ended by themselves or by a time limit, and not with the recording."""
        assert self.terminations is not None and self.truncations is not None
        return (self.terminations | self.truncations)[np.flatnonzero(self._ends)]

    @property
    def returns(self) -> np.ndarray:
        """
        ``(n_episodes,)``, the sum of the rewards of each episode.

        :raises ValueError: if the data have no rewards
        """
        if self.rewards is None:
            raise ValueError("returns need rewards, which these data do not have")
        starts = np.concatenate([[0], np.flatnonzero(self._ends)[:-1] + 1])
        return np.add.reduceat(self.rewards.astype(np.float64), starts)

    def episodes(self) -> Iterator["OfflineDataset"]:
        """
        Iterate over the episodes.

        :return: each one, as a data set
        """
        ends = np.flatnonzero(self._ends) + 1
        for start, end in zip(np.append(0, ends[:-1]), ends, strict=True):
            yield self.rows(slice(start, end))

    def rows(self, which: Any) -> "OfflineDataset":
        """
        Some of the rows, in their order. The last row of each run of neighbours is the end of an episode.

        :param which: a slice, indices that ascend, or a mask ``(n,)``
        :return: these rows
        """
        index = np.arange(len(self))[which]
        ends = self._ends[index] | np.append(np.diff(index) != 1, True)
        kept = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in SPACES}
        taken = {name: mapped(column, lambda part: part[which]) for name, column in kept.items()}
        return replace(self, **(taken | dict(episode_ends=ends)))

    def best(self, fraction: float) -> "OfflineDataset":
        """
        The episodes of the highest return, in their order, as in filtered behaviour cloning (BC10%: Chen et al. 2021, section
        5.1). Episodes that the recording cut off are left out, since their returns are not known.

        :param fraction: of the whole episodes, in (0, 1]; at least one is kept
        :return: their rows
        :raises ValueError: if the fraction is out of range, there are no rewards, or no episode is whole
        """
        fraction, returns, whole = check_part("fraction", fraction), self.returns, np.flatnonzero(self.are_whole)
        if len(whole) == 0:
            raise ValueError("best needs episodes with an end, and these data have no termination and no truncation at one")
        n = math.ceil(fraction * len(whole) - 1e-9)
        order = whole[np.argsort(-returns[whole], kind="stable")]
        is_kept = np.zeros(self.n_episodes, dtype=bool)
        is_kept[order[: max(n, 1)]] = True
        episode_of_row = np.cumsum(np.append(0, self._ends[:-1]))
        return self.rows(is_kept[episode_of_row])

    def with_next_observations(self) -> "OfflineDataset":
        """
        The same data with the column ``next_observations``: the observation of the next row. What followed the last row of an
        episode is not known. After a termination it does not matter, and the row's own observation stands there; other last
        rows are left out.

        :return: these data, if they have that column already, or new ones
        :raises ValueError: if no row is left
        """
        if self.next_observations is not None:
            return self
        assert self.terminations is not None and self.truncations is not None
        following = np.where(self._ends, np.arange(len(self)), np.arange(len(self)) + 1)
        whole = replace(self, next_observations=mapped(self.observations, lambda part: part[following]))
        is_known = ~self._ends | self.terminations
        if not is_known.any():
            raise ValueError("next_observations are needed, and every episode of these data has one row only")
        left = np.flatnonzero(~is_known)
        before = left[left > 0] - 1  # which ends its episode now, in the way in which the row that is left out did
        truncations = self.truncations.copy()
        truncations[before] |= self.truncations[before + 1] & ~self._ends[before]
        return replace(whole, truncations=truncations).rows(is_known)

    def draw(self, n: int, generator: th.Generator | None = None) -> Batch:
        """
        Rows drawn uniformly with replacement.

        :param n: how many
        :param generator: source of the draw, on the CPU (``None``: torch's global one)
        :return: the rows, on the CPU
        :raises ValueError: if ``n`` is below 1
        :raises TypeError: if ``n`` is no integer
        """
        n = check_integer("n", n, minimum=1)
        rows = th.randint(len(self), (n,), generator=generator).numpy()

        def taken(column: Any) -> Any:
            return mapped(column, lambda part: th.from_numpy(part[rows]))

        return Batch(
            taken(self.observations),
            taken(self.actions),
            taken(self.rewards),
            taken(self.next_observations),
            taken(self.terminations).float(),
        )

    def save(self, path: PathOrFile) -> None:
        """
        Save the data and their spaces as an NPZ file, which :func:`sb3_energy.offline.load_dataset` reads.

        :param path: where to; ``.npz`` is appended to a path without suffix. The old file stays whole until the new one is
            complete
        :raises OSError: if the file cannot be written
        """
        columns: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in SPACES:
                columns[field.name] = np.array(space_to_json(value))
            elif isinstance(value, dict):
                columns |= {f"{field.name}/{key}": part for key, part in value.items()}
            elif value is not None:
                columns[field.name] = value
        write_whole(path, "npz", lambda file: np.savez(file, **columns))
