"""One training on a world of goals, which ``benchmarks.modes`` starts: shares of goals, errors of the critic, visits."""

import sys
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

import sb3_energy.envs  # noqa: F401  registers the id
from benchmarks.evaluation import EVALUATION_SEED, isolated_randomness, mean_q
from benchmarks.files import Row, RunFiles
from benchmarks.goal_trainings import acting, play
from benchmarks.runs import NAN, EvaluateAndCheckpoint, main
from sb3_energy.envs import World


def columns_of(n_goals: int) -> list[str]:
    """
    :param n_goals: goals of the world
    :return: columns of a run's CSV: ``share_g`` of the episodes, ``q_error_g`` in units of the temperature, ``visits_g``
        of the training so far, and the steps of the first and the last one
    """
    of_goals = [
        f"{name}_{goal}" for name in ("share", "q_error", "visits", "first_visit", "last_visit") for goal in range(n_goals)
    ]
    return ["timesteps", "total_variation", "no_goal", "mean_return", *of_goals, "ent_coef", "cpu_seconds"]


def total_variation(shares: np.ndarray, exact: np.ndarray) -> float:
    """
    :param shares: ``(G,)`` of goals
    :param exact: ``(G,)`` what they should be
    :return: half the sum of the differences; episodes that reach no goal are one more outcome
    """
    differences = np.append(shares - exact, exact.sum() - shares.sum())
    return float(np.abs(differences).sum() / 2.0)


class EvaluateModes(EvaluateAndCheckpoint):
    """Sampled episodes from the origin, the critic's values of the best first actions, and visits of goals in the training."""

    def __init__(self, config: Mapping[str, Any], files: RunFiles, rows: list[Row]) -> None:
        super().__init__(config, files, rows)
        self.world = world_of(config)
        self.exact = {name: np.array(value) for name, value in config["exact"].items()}
        self.columns = columns_of(self.world.n_goals)
        self.visits = self._so_far("visits", 0.0)
        self.first_visits, self.last_visits = self._so_far("first_visit", NAN), self._so_far("last_visit", NAN)

    def _so_far(self, name: str, start: float) -> np.ndarray:
        """A checkpoint is made right after a row, so the last row knows all visits before it."""
        last = self.rows[-1] if self.rows else {}
        return np.array([last.get(f"{name}_{goal}", start) for goal in range(self.world.n_goals)])

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if info["goal"] >= 0:
                self.visits[info["goal"]] += 1
                self.last_visits[info["goal"]] = self.num_timesteps
                if np.isnan(self.first_visits[info["goal"]]):
                    self.first_visits[info["goal"]] = self.num_timesteps
        return True

    def measured(self) -> Row:
        with isolated_randomness(EVALUATION_SEED):
            played = play(acting(self.model), self.config["eval_episodes"], world=self.world)
        first_actions = self.exact["first_actions"]
        q_values = mean_q(self.model, np.zeros_like(first_actions, dtype=np.float32), first_actions)
        of_goals = {
            "share": played.shares,
            "q_error": (q_values - self.exact["q_values"]) / self.config["alpha"],
            "visits": self.visits,
            "first_visit": self.first_visits,
            "last_visit": self.last_visits,
        }
        return {
            "total_variation": total_variation(np.array(played.shares), self.exact["shares"]),
            "no_goal": played.lost,
            "mean_return": float(played.returns.mean()),
            **{f"{name}_{goal}": float(value) for name, values in of_goals.items() for goal, value in enumerate(values)},
            "ent_coef": self.logged("train/ent_coef"),
        }


def world_of(config: Mapping[str, Any]) -> World:
    """
    :param config: the configuration of a run
    :return: its world
    """
    return World(**config["world"])


def training_env(config: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """
    :param config: the configuration of a run
    :return: its environment
    """
    return gym.make("RandomGoals-v0", **config["world"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], training_env, EvaluateModes))
