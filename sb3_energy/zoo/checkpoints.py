"""
Checkpoints from which a killed training goes on. The zoo's own leave the replay buffer out, and are continued with a
fresh count of steps and a second random warm-up.

The functions here wrap the methods of the zoo's ``ExperimentManager`` that have their names; ``original`` is the bound
method.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_energy.files.atomic import PathOrFile, write_whole
from sb3_energy.files.checksums import DamagedError, dump_checked, load_checked
from sb3_energy.files.errors import existing, explained

BUFFER, STATISTICS = "replay_buffer", "vecnormalize"


class MatchingCheckpointCallback(CheckpointCallback):
    """
    SB3's checkpoints in an order that survives a kill: each file is written whole (see
    :class:`sb3_energy.training.persistence.PersistentAlgorithm`), the model last. Wherever the process ends, the newest
    ``rl_model_<steps>_steps.zip`` has the replay buffer and the normalisation statistics of the same step beside it.
    Older replay buffers are removed.

    SB3 calls ``_on_step`` before a transition is stored and learned from, so that the checkpoint waits for the next
    rollout to start: model and buffer then agree.
    """

    _is_due = False

    def _on_step(self) -> bool:
        self._is_due |= self.n_calls % self.save_freq == 0
        return True

    def _on_rollout_start(self) -> None:
        if self._is_due:
            self._save(Path(self._checkpoint_path(extension="zip")))
            self._is_due = False

    def _on_training_end(self) -> None:
        self._on_rollout_start()

    def _save(self, model_path: Path) -> None:
        buffer_path, statistics = companion(model_path, BUFFER), self.model.get_vec_normalize_env()
        if self.save_replay_buffer and getattr(self.model, "replay_buffer", None) is not None:
            self.model.save_replay_buffer(buffer_path)  # type: ignore[attr-defined]
        if self.save_vecnormalize and statistics is not None:
            save_statistics(statistics, companion(model_path, STATISTICS))
        self.model.save(model_path)
        for path in model_path.parent.glob(f"{BUFFER}_*_steps.pkl"):
            if path != buffer_path:
                path.unlink()


def save_statistics(env: VecNormalize, path: PathOrFile) -> None:
    """
    Save the running statistics as ``VecNormalize.save`` does, which ``VecNormalize.load`` reads, in a whole file with a
    checksum.

    :param env: the normalised environment
    :param path: where to
    :raises OSError: if the file cannot be written
    """
    write_whole(path, "", partial(dump_checked, env))


def load_statistics(path: Path, venv: VecEnv) -> VecNormalize:
    """
    Load running statistics as ``VecNormalize.load`` does. This runs code that the file contains: load only files of people
    you trust.

    :param path: where ``VecNormalize.save`` or :func:`save_statistics` has written
    :param venv: the environment to normalise
    :return: the normalised environment
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it is another one, or damaged
    """
    found: Any = existing(path, "", "VecNormalize")
    with explained(path, "VecNormalize"), open(found, "rb") as file:
        statistics = load_checked(file, is_alone=True)
        if not isinstance(statistics, VecNormalize):
            raise DamagedError(f"it holds a {type(statistics).__name__}")
    statistics.set_venv(venv)
    return statistics


@contextmanager
def whole_statistics(env: VecNormalize | None) -> Iterator[None]:
    """
    Within it, ``env.save``, which SB3 writes over the old file, leaves that whole.

    :param env: the normalised environment of a model, if it is one
    """
    if env is None or type(env).save is not VecNormalize.save:
        yield
        return

    def save(save_path: str) -> None:
        vars(env).pop("save", None)  # no part of what is saved
        save_statistics(env, save_path)

    vars(env)["save"] = save
    try:
        yield
    finally:
        vars(env).pop("save", None)


def save_with_statistics(original: Callable[..., Any], holder: Any, *args: Any) -> Any:
    """
    What the zoo saves beside a model: ``vecnormalize.pkl``, after a run and with each best model, in whole files.

    :param original: the method that is wrapped
    :param holder: a callback, which knows its model, or the experiment, which is given it
    :param args: of the method
    :return: what the method returns
    """
    model = args[0] if args else holder.model
    with whole_statistics(model.get_vec_normalize_env()):
        return original(*args)


def companion(model_path: Path, kind: str) -> Path:
    """
    Path of the replay buffer or normalization statistics saved with a checkpoint.

    :param model_path: ``.../rl_model_<steps>_steps.zip``
    :param kind: ``"replay_buffer"`` or ``"vecnormalize"``
    :return: where what belongs to that checkpoint is; the zoo's scripts take every ``rl_model_*`` for a model
    """
    return model_path.with_name(f"{kind}_{model_path.stem.removeprefix('rl_model_')}.pkl")


def create_callbacks(original: Callable[[], None], manager: Any) -> None:
    """
    Make the zoo's checkpoints complete; ``--save-replay-buffer`` then holds for them too.

    :param original: the method that is wrapped
    :param manager: the experiment
    """
    n_specified = len(manager.callbacks)  # those of the YAML stay as they are
    original()
    manager.callbacks[n_specified:] = [
        _matching(callback, manager.save_replay_buffer) if type(callback) is CheckpointCallback else callback
        for callback in manager.callbacks[n_specified:]
    ]


def _matching(callback: CheckpointCallback, save_replay_buffer: bool) -> MatchingCheckpointCallback:
    return MatchingCheckpointCallback(
        callback.save_freq,
        callback.save_path,
        callback.name_prefix,
        save_replay_buffer=save_replay_buffer,
        save_vecnormalize=True,
        verbose=callback.verbose,
    )


def maybe_normalize(original: Callable[..., VecEnv], manager: Any, env: VecEnv, eval_env: bool) -> VecEnv:
    """
    Continue with the statistics of the checkpoint, where the zoo takes those of the best model so far.

    :param original: the method that is wrapped
    :param manager: the experiment
    :param env: the environment
    :param eval_env: whether it is for evaluation only
    :return: the environment, normalised where the experiment is
    """
    env = original(env, eval_env)
    if not manager.continue_training:
        return env
    path = companion(Path(manager.trained_agent), STATISTICS)
    if not path.is_file():
        return env
    normalized = load_statistics(path, env.venv if isinstance(env, VecNormalize) else env)
    if eval_env:
        normalized.training = normalized.norm_reward = False
    return normalized


def load_pretrained_agent(original: Callable[..., Any], manager: Any, hyperparams: dict[str, Any], env: VecEnv) -> Any:
    """
    Load the replay buffer of the checkpoint that is continued, where the zoo knows only that of a finished run.

    :param original: the method that is wrapped
    :param manager: the experiment
    :param hyperparams: arguments of the algorithm
    :param env: the environment
    :return: the model
    """
    model = original(hyperparams, env)
    path = companion(Path(manager.trained_agent), BUFFER)
    if path.is_file():
        print(f"Loading replay buffer {path}")
        model.load_replay_buffer(path, truncate_last_traj=manager.truncate_last_trajectory)
    if _has_experience(model):
        _end_last_trajectory(model.replay_buffer)
    else:
        print(f"No replay buffer beside {manager.trained_agent}: collecting experience anew, counting steps from 0")
    return model


def _has_experience(model: Any) -> bool:
    return model.replay_buffer is not None and model.replay_buffer.size() > 0


def _end_last_trajectory(buffer: ReplayBuffer) -> None:
    """The episode in which the process ended is not gone on with: returns over n steps must not run into the next one."""
    if isinstance(buffer, HerReplayBuffer):  # load_replay_buffer has seen to it
        return
    last = (buffer.pos - 1) % buffer.buffer_size
    if buffer.optimize_memory_usage:  # the observation after it will be overwritten, as in OffPolicyAlgorithm._setup_learn
        buffer.dones[last] = True
    else:
        buffer.timeouts[last] = np.maximum(buffer.timeouts[last], buffer.dones[last] == 0)


def learn(original: Callable[[Any], None], manager: Any, model: Any) -> None:
    """
    Go on counting steps when an agent is continued with its experience: no second random warm-up, schedules and
    checkpoint names go on where they were.

    :param original: the method that is wrapped
    :param manager: the experiment
    :param model: the model
    """
    if manager.continue_training and _has_experience(model):
        print(f"Continuing at step {model.num_timesteps} with {model.replay_buffer.size()} rows of experience")
        model = _Continued(model)
    original(model)


def learn_on_data(original: Callable[[Any], None], manager: Any, model: Any) -> None:
    """
    Go on counting gradient steps when a model that learns from data is continued.

    :param original: the method that is wrapped
    :param manager: the experiment
    :param model: the model
    """
    if manager.continue_training:
        print(f"Continuing at step {model.num_timesteps}")
        model = _Continued(model)
    original(model)


class _Continued:
    """
    A model whose ``learn`` does not start counting anew.

    :param model: the model
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def learn(self, *args: Any, **kwargs: Any) -> Any:
        return self._model.learn(*args, reset_num_timesteps=False, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
