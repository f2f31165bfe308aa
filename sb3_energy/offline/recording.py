"""Data sets of what an agent does in an environment."""

from collections import defaultdict
from contextlib import nullcontext
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_energy.checks import check_bool, check_integer
from sb3_energy.files.atomic import PathOrFile
from sb3_energy.offline.columns import check_dataset_spaces, checked_actions, mapped
from sb3_energy.offline.fit import show_progress
from sb3_energy.offline.offline_dataset import OfflineDataset
from sb3_energy.offline.sources.minari import check_new_id, save_minari
from sb3_energy.training.arguments import LARGEST_SEED
from sb3_energy.training.guards import check_transition


def record_dataset(
    model: Any,
    env: GymEnv | str,
    n_steps: int | None = None,
    n_episodes: int | None = None,
    deterministic: bool = True,
    seed: int | None = None,
    path: PathOrFile | None = None,
    dataset_id: str | None = None,
    progress_bar: bool = False,
) -> OfflineDataset:
    """
    Let an agent act, and keep what happens.

    With several environments their shares of the steps or episodes are fixed beforehand, as in SB3's ``evaluate_policy``, so
    that short episodes are not preferred. ``n_episodes`` gives whole episodes only; with ``n_steps`` the last one of each
    environment may be cut off. Where the environment is a ``VecNormalize``, the agent sees what it normalises, and the data
    set has the original observations and rewards; its statistics do not change.

    :param model: any agent with SB3's ``predict(observation, state, episode_start, deterministic)``
    :param env: The environment (if registered in Gym, can be str)
    :param n_steps: number of transitions
    :param n_episodes: number of episodes, in the place of ``n_steps``
    :param deterministic: Whether to use deterministic or stochastic actions
    :param seed: of the environment (``None``: it is not seeded)
    :param path: where to save the data set as an NPZ file (``None``: nowhere)
    :param dataset_id: id of a Minari data set to write, ``namespace/name-v0`` (``None``: none is written)
    :param progress_bar: Display a progress bar using tqdm and rich.
    :return: the data, in the order of the environments
    :raises ValueError: if a number is out of range, an action is not in the action space, or an observation or reward is NaN
        or infinity
    :raises TypeError: if an argument has the wrong type
    :raises ImportError: if ``dataset_id`` is given and Minari is missing, or there are no tqdm and rich for the bar
    """
    if not hasattr(model, "predict"):
        raise TypeError(f"model must have SB3's predict, got {type(model).__name__}")
    if (n_steps is None) == (n_episodes is None):
        raise ValueError(f"either n_steps or n_episodes must be given, got {n_steps!r} and {n_episodes!r}")
    name, total = ("n_steps", n_steps) if n_episodes is None else ("n_episodes", n_episodes)
    total = check_integer(name, total, minimum=1)
    deterministic, shows = check_bool("deterministic", deterministic), check_bool("progress_bar", progress_bar)
    if dataset_id is not None:
        check_new_id(dataset_id)
    recorder = _Recorder(_vectorized(env), total, counts_episodes=n_episodes is not None)
    if seed is not None:
        recorder.env.seed(check_integer("seed", seed, 0, LARGEST_SEED))
    with show_progress(total) if shows else nullcontext() as bar:
        recorder.run(model, deterministic, bar)
    dataset = recorder.dataset()
    if path is not None:
        dataset.save(path)
    if dataset_id is not None:
        save_minari(dataset, dataset_id, recorder.registered_name())
    return dataset


def _vectorized(env: GymEnv | str) -> VecEnv:
    made = maybe_make_env(env, verbose=0)
    vectorized = made if isinstance(made, VecEnv) else DummyVecEnv([lambda: made])
    check_dataset_spaces(vectorized.observation_space, vectorized.action_space)
    if unwrap_vec_normalize(vectorized) is not None and not isinstance(vectorized, VecNormalize):
        raise ValueError(f"VecNormalize must be the outermost wrapper of env, got {type(vectorized).__name__} around it")
    return vectorized


class _Recorder:
    """
    The transitions of each environment, as far as its share goes.

    :param env: which acts
    :param total: number of steps, or of episodes
    :param counts_episodes: which of the two
    """

    def __init__(self, env: VecEnv, total: int, counts_episodes: bool):
        self.env, self.counts_episodes = env, counts_episodes
        self.normalize = env if isinstance(env, VecNormalize) else None
        self.shares = np.array([(total + i) // env.num_envs for i in range(env.num_envs)])
        self.done = np.zeros(env.num_envs, dtype=int)
        self.columns: list[dict[str, list[Any]]] = [defaultdict(list) for _ in range(env.num_envs)]

    def run(self, model: Any, deterministic: bool, bar: Any) -> None:
        """Act until every share is complete."""
        if self.normalize is None:
            self._run(model, deterministic, bar)
            return
        before, self.normalize.training = self.normalize.training, False
        try:
            self._run(model, deterministic, bar)
        finally:
            self.normalize.training = before

    def _run(self, model: Any, deterministic: bool, bar: Any) -> None:
        space: Any = self.env.action_space
        state, starts = None, np.ones(self.env.num_envs, dtype=bool)
        seen: Any = self.env.reset()
        while (self.done < self.shares).any():
            original = _copied(self._original(seen))
            actions, state = model.predict(seen, state=state, episode_start=starts, deterministic=deterministic)
            actions = checked_actions(np.reshape(actions, (self.env.num_envs, *space.shape)), space)
            seen, rewards, starts, infos = self.env.step(actions)
            check_transition(rewards, seen, infos, self.normalize)
            if self.normalize is not None:
                rewards = self.normalize.get_original_reward()
            following = self._original(seen)
            counted = 0
            for i in np.flatnonzero(self.done < self.shares).tolist():
                counted += self._keep(i, original, actions[i], rewards[i], following, bool(starts[i]), infos[i])
            if bar is not None:
                bar.update(counted)

    def _keep(
        self, i: int, original: Any, action: np.ndarray, reward: float, following: Any, ends: bool, info: dict[str, Any]
    ) -> int:
        """Store one transition; returns how much of the share that was."""
        last = info.get("terminal_observation") if ends else None
        if last is None:
            last = mapped(following, lambda part: part[i])
        elif self.normalize is not None:
            last = self.normalize.unnormalize_obs(last)
        truncated = ends and bool(info.get("TimeLimit.truncated", False))
        row = dict(
            observations=mapped(original, lambda part: part[i]),
            actions=action,
            rewards=reward,
            next_observations=_copied(last),
            terminations=ends and not truncated,
            truncations=truncated,
            episode_ends=ends,
        )
        for name, value in row.items():
            self.columns[i][name].append(value)
        counted = int(ends or not self.counts_episodes)
        self.done[i] += counted
        return counted

    def _original(self, seen: Any) -> Any:
        return seen if self.normalize is None else self.normalize.get_original_obs()

    def dataset(self) -> OfflineDataset:
        """What was recorded."""
        used = [columns for columns in self.columns if columns]
        for columns in used:
            columns["episode_ends"][-1] = True
        joined: dict[str, Any] = {name: _stacked([value for one in used for value in one[name]]) for name in used[0]}
        space, box = self.env.observation_space, self.env.action_space
        assert isinstance(box, spaces.Box)
        return OfflineDataset(observation_space=space, action_space=box, **joined)

    def registered_name(self) -> str | None:
        """The name under which Gymnasium knows the environment, if it has one."""
        specs = self.env.get_attr("spec") if self.env.has_attr("spec") else [None]
        name = getattr(specs[0], "id", None)
        return name if name in gym.registry else None


def _copied(column: Any) -> Any:
    """Environments may write to the arrays that they have returned."""
    return mapped(column, lambda part: np.array(part))


def _stacked(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {key: np.stack([value[key] for value in values]) for key in values[0]}
    return np.stack(values)
