"""One training run in a process of its own, which a benchmark starts. Killed at any time, it goes on next time."""

import fcntl
import os
import pickle
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor

from benchmarks.envs import make_env
from benchmarks.evaluation import evaluate
from benchmarks.files import COLUMNS, Row, RunFiles
from benchmarks.variants import REFINED, algorithm_class, constructor_arguments

NAN = float("nan")


class LastValues(KVWriter):
    """Remembers the last value of every logger key, because SB3's logger forgets them at each dump."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.values.update(key_values)

    def close(self) -> None:
        pass


class EvaluateAndCheckpoint(BaseCallback):
    """
    Every ``eval_freq`` steps, between an update and the next rollout: one row of the CSV, then a checkpoint. What is measured
    is up to the subclass.

    :param config: the run's configuration
    :param files: the run's files
    :param rows: the rows of the run so far
    """

    model: SAC
    columns: Sequence[str]
    """Of the CSV; beside what is measured they have ``timesteps`` and ``cpu_seconds``."""

    def __init__(self, config: Mapping[str, Any], files: RunFiles, rows: list[Row]) -> None:
        super().__init__()
        self.config, self.files, self.rows = config, files, rows
        self.last_values = LastValues()
        self.cpu_before = rows[-1]["cpu_seconds"] if rows else 0.0
        self.cpu_start = 0.0

    def _on_training_start(self) -> None:
        self.cpu_start = time.process_time()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        # Between two rollouts are the updates, large enough to gain; acting on one observation is faster without.
        th.set_float32_matmul_precision(self.config["matmul_precision"])

    def _on_rollout_start(self) -> None:
        th.set_float32_matmul_precision("highest")
        seen = int(self.rows[-1]["timesteps"]) if self.rows else 0
        if self.num_timesteps // self.config["eval_freq"] > seen // self.config["eval_freq"]:
            self._add_row()
            save_checkpoint(self.model, self.files)
            self.cpu_start = time.process_time()

    def _on_training_end(self) -> None:
        th.set_float32_matmul_precision("highest")
        self.files.write_model(self.model)  # before the last row, which says that the run is finished
        self._add_row()

    def _add_row(self) -> None:
        cpu_seconds = self.cpu_before + time.process_time() - self.cpu_start
        self.rows.append({"timesteps": self.num_timesteps, **self.measured(), "cpu_seconds": cpu_seconds})
        self.files.write_rows(self.rows, self.columns)
        self.cpu_before = cpu_seconds

    def logged(self, key: str) -> float:
        """
        :param key: of SB3's logger
        :return: the last value under it, NaN if there was none
        """
        return float({**self.last_values.values, **self.logger.name_to_value}.get(key, NAN))

    def measured(self) -> Row:
        """
        :return: the other columns of a row, of the model as it is now
        """
        raise NotImplementedError


class EvaluateReturns(EvaluateAndCheckpoint):
    """Returns and values, in episodes from fixed seeds."""

    columns = COLUMNS

    def __init__(self, config: Mapping[str, Any], files: RunFiles, rows: list[Row]) -> None:
        super().__init__(config, files, rows)
        self.envs = [training_env(config) for _ in range(config["eval_episodes"])]

    def measured(self) -> Row:
        return {
            **evaluate(self.model, self.envs, with_base=self.config["algorithm"] in REFINED),
            "train_overestimation": self.logged("train/overestimation"),
            "ent_coef": self.logged("train/ent_coef"),
        }


def training_env(config: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """
    :param config: the configuration of a run of ``benchmarks.returns``
    :return: its environment
    """
    return make_env(config["env"], config["action_repeat"])


def save_checkpoint(model: SAC, files: RunFiles) -> None:
    """
    Model, replay buffer and random numbers, in a folder that gets its name when complete; older folders are then removed.

    :param model: the model
    :param files: the run's files
    """
    final = files.checkpoints / str(model.num_timesteps)
    temporary = final.with_suffix(".tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    model.save(temporary / "model.zip")
    model.save_replay_buffer(temporary / "replay_buffer.pkl")
    states = random.getstate(), np.random.get_state(), th.get_rng_state()
    (temporary / "randomness.pkl").write_bytes(pickle.dumps(states))
    os.rename(temporary, final)
    files.drop_checkpoints(keep=final)


def load_checkpoint(folder: Path, algorithm: type[SAC], env: Monitor[Any, Any], seed: int) -> SAC:
    """
    The environment starts a new episode, seeded by how far the training is; everything else goes on where it was.

    :param folder: a complete checkpoint
    :param algorithm: the class that wrote it
    :param env: the training environment
    :param seed: the run's seed
    :return: the model
    """
    model = algorithm.load(folder / "model.zip", env=env, device="cpu")
    model.load_replay_buffer(folder / "replay_buffer.pkl")
    vec_env = model.get_env()
    assert vec_env is not None
    vec_env.seed(seed + 1_000_003 * model.num_timesteps % 2**31)
    python_state, numpy_state, torch_state = pickle.loads((folder / "randomness.pkl").read_bytes())
    random.setstate(python_state)
    np.random.set_state(numpy_state)
    th.set_rng_state(torch_state)
    return model


Env = Callable[[Mapping[str, Any]], gym.Env[Any, Any]]
"""Configuration to environment."""


def train(config: Mapping[str, Any], files: RunFiles, make: Env, evaluation: type[EvaluateAndCheckpoint]) -> None:
    """
    Start a run, or go on from its last checkpoint, until its last row is written.

    :param config: the run's configuration
    :param files: the run's files
    :param make: its environment
    :param evaluation: what is measured
    """
    algorithm = algorithm_class(config["algorithm"])
    env = Monitor(make(config))
    folder, rows = files.latest_checkpoint(), []
    if folder is None:
        kwargs = constructor_arguments(config["kwargs"])
        model = algorithm("MlpPolicy", env, seed=config["seed"], device="cpu", **kwargs)
    else:
        model = load_checkpoint(folder, algorithm, env, config["seed"])
        rows = [row for row in files.read_rows() if row["timesteps"] <= model.num_timesteps]
        print(f"goes on at {model.num_timesteps} of {config['steps']} steps")
    callback = evaluation(config, files, rows)
    model.set_logger(Logger(folder=None, output_formats=[callback.last_values]))
    model.learn(config["steps"] - model.num_timesteps, callback=callback, reset_num_timesteps=False)
    files.drop_checkpoints()


def end_with_parent() -> None:
    """Ends this process once the pipe on its standard input closes, which is when its parent is gone for whatever reason."""
    os.read(0, 1)
    os._exit(1)


def main(config_file: str, make: Env = training_env, evaluation: type[EvaluateAndCheckpoint] = EvaluateReturns) -> int:
    """
    :param config_file: the run's configuration, written by a benchmark
    :param make: its environment
    :param evaluation: what is measured
    :return: the exit status
    """
    return run_alone(config_file, lambda config, files: train(config, files, make, evaluation))


def run_alone(config_file: str, run: Callable[[Mapping[str, Any], RunFiles], None]) -> int:
    """
    Train on one thread, unless the run is finished or another process is at it. It ends with the process that has started it.

    :param config_file: the run's configuration, written by a benchmark
    :param run: trains, given the configuration and the run's files
    :return: the exit status
    """
    threading.Thread(target=end_with_parent, daemon=True).start()
    th.set_num_threads(1)
    files = RunFiles(Path(config_file).with_suffix(""))
    config = files.read_config()
    if config is None:
        print(f"{config_file} must be a run's configuration written by a benchmark, found no such file")
        return 2
    with open(files.lock, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{files.stem} is being trained by another process")
            return 3
        if not files.is_finished(config["steps"]):
            run(config, files)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
