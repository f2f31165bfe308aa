"""One clone of the particle's expert, which ``benchmarks.particle`` starts: how often its episodes succeed."""

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.evaluation import EVALUATION_SEED, isolated_randomness
from benchmarks.files import Row, RunFiles
from benchmarks.runs import NAN, run_alone
from benchmarks.variants import algorithm_class
from sb3_energy import IBC, OfflineDataset
from sb3_energy.envs import ParticleExpert, draw_starts, run_episodes
from sb3_energy.envs.particle_env import ParticleGoalsEnv
from sb3_energy.schedules import Cosine

COLUMNS = ("timesteps", "success", "grid_success", "nearest_first", "final_second", "cpu_seconds")
DEMONSTRATION_SEED = 1
GRID = {1: 401, 2: 61}
"""Points of each axis; more dimensions are not searched."""
LAST_LEARNING_RATE = 0.01
"""Part of the learning rate that is left at the end of a run."""


def demonstrations(n_dims: int, n_episodes: int) -> OfflineDataset:
    """
    :param n_dims: of the particle
    :param n_episodes: how many episodes of the expert
    :return: the same data for the same numbers
    """
    starts = draw_starts(np.random.default_rng(DEMONSTRATION_SEED), n_episodes, n_dims)
    columns: dict[str, Any] = run_episodes(ParticleExpert(n_dims), starts).transitions()
    env = ParticleGoalsEnv(n_dims)
    del columns["next_observations"]
    return OfflineDataset(**columns, observation_space=env.observation_space, action_space=env.action_space)


class GridSearch:
    """
    The lowest energy on a grid: what a search would find that misses nothing.

    :param model: whose energy is searched
    :param n_points: of each axis
    """

    def __init__(self, model: IBC, n_points: int):
        self.policy = model.policy
        axis = th.linspace(-1.0, 1.0, n_points, device=model.device)
        self.points = th.cartesian_prod(*[axis] * self.policy.action_dim).reshape(-1, self.policy.action_dim)

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, Any]:
        """As SB3's ``predict``."""
        found = []
        with th.no_grad():
            for part in th.as_tensor(observation, device=self.points.device).split(32):
                energies = self.policy.energy_fn(part)(self.points.expand(len(part), -1, -1))
                found.append(self.points[energies.argmin(1)])
        return self.policy.unscale_action(th.cat(found).cpu().numpy()), state


def measured(model: Any, config: Mapping[str, Any]) -> Row:
    """
    :param model: a clone
    :param config: the run's configuration
    :return: success, and mean distances
    """
    starts = draw_starts(np.random.default_rng(EVALUATION_SEED), config["eval_episodes"], config["n_dims"])
    with isolated_randomness(EVALUATION_SEED):
        episodes = run_episodes(model, starts)
    grid, n_points = NAN, GRID.get(config["n_dims"])
    if isinstance(model, IBC) and n_points is not None:
        grid = float(run_episodes(GridSearch(model, n_points), starts).successes.mean())
    visits = episodes.visits
    return {
        "success": float(episodes.successes.mean()),
        "grid_success": grid,
        "nearest_first": float(visits.nearest[:, 0].mean()),
        "final_second": float(visits.final[:, 1].mean()),
    }


class EvaluateAndSave(BaseCallback):
    """
    Every ``eval_freq`` gradient steps and at the end: the model's file, then one row of the CSV.

    :param config: the run's configuration
    :param files: the run's files
    :param rows: the rows of the run so far
    """

    def __init__(self, config: Mapping[str, Any], files: RunFiles, rows: list[Row]) -> None:
        super().__init__()
        self.config, self.files, self.rows = config, files, rows
        self.cpu_before = rows[-1]["cpu_seconds"] if rows else 0.0
        self.cpu_start = time.process_time()

    def _on_training_start(self) -> None:
        if self.num_timesteps > 0 and (not self.rows or self.rows[-1]["timesteps"] < self.num_timesteps):
            self.add_row()  # it was killed between the model's file and its row

    def _on_step(self) -> bool:
        if self.num_timesteps % self.config["eval_freq"] == 0 or self.num_timesteps == self.config["steps"]:
            self.files.write_model(self.model)
            self.add_row()
        return True

    def add_row(self) -> None:
        """Measure the model as it is now. ``cpu_seconds`` are those of the training alone."""
        cpu_seconds = self.cpu_before + time.process_time() - self.cpu_start
        self.rows.append({"timesteps": self.num_timesteps, **measured(self.model, self.config), "cpu_seconds": cpu_seconds})
        self.files.write_rows(self.rows, COLUMNS)
        self.cpu_before, self.cpu_start = cpu_seconds, time.process_time()


def train(config: Mapping[str, Any], files: RunFiles) -> None:
    """
    Train from the last saved model on, or from the beginning.

    :param config: the run's configuration
    :param files: the run's files
    """
    data = demonstrations(config["n_dims"], config["demonstrations"])
    made: Any = algorithm_class(config["algorithm"])
    if files.model.exists():
        model = made.load(files.model, dataset=data, device="cpu")
    else:
        model = made("MlpPolicy", data, seed=config["seed"], device="cpu", **falling(config["kwargs"]))
    rows = [row for row in files.read_rows() if row["timesteps"] <= model.num_timesteps]
    callback = EvaluateAndSave(config, files, rows)
    model.learn(config["steps"] - model.num_timesteps, callback, log_interval=None, reset_num_timesteps=False)


def falling(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param kwargs: of a clone
    :return: the same with a learning rate that falls over the run, where there is one
    """
    if "policy_kwargs" not in kwargs:  # without networks
        return dict(kwargs)
    rate = kwargs.get("learning_rate", 1e-3)
    return {**kwargs, "learning_rate": Cosine(rate, LAST_LEARNING_RATE * rate)}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(run_alone(sys.argv[1], train))
