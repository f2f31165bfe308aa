"""From the CSV files of runs on worlds of goals to a table of each run and one of each algorithm."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.report import Group, Run, finished

MODE, LOST = 0.15, 0.05
"""A goal of at least this exact share is a mode; one that is reached in less than that part of the episodes is lost."""


@dataclass(frozen=True)
class Score:
    """
    What a finished run is judged by: its last evaluation.

    :param exact: ``(G,)`` shares of goals
    :param shares: ``(G,)`` those of the trained policy
    :param q_errors: ``(G,)`` the critic minus the exact soft Q-value, in units of the temperature
    :param visits: ``(G,)`` in the training
    :param last_visits: ``(G,)`` step of the last one, NaN without one
    :param total_variation: between the shares, with episodes that reach no goal as one more outcome
    """

    exact: np.ndarray
    shares: np.ndarray
    q_errors: np.ndarray
    visits: np.ndarray
    last_visits: np.ndarray
    total_variation: float

    @property
    def modes(self) -> np.ndarray:
        """Indices of the goals that count."""
        return np.flatnonzero(self.exact >= MODE)

    @property
    def lost(self) -> np.ndarray:
        """Indices of the modes that are lost, the largest first."""
        lost = self.modes[self.shares[self.modes] < LOST]
        return lost[np.argsort(-self.exact[lost], kind="stable")]


def score_of(run: Run) -> Score:
    """
    :param run: a run with at least one evaluation
    :return: its score
    """
    exact, last = np.array(run.config["exact"]["shares"]), run.rows[-1]
    columns = [np.array([last[f"{name}_{goal}"] for goal in range(len(exact))]) for name in _COLUMNS]
    return Score(exact, *columns, last["total_variation"])


_COLUMNS = ("share", "q_error", "visits", "last_visit")


def _shares(shares: np.ndarray) -> str:
    return " ".join(f"{share:.2f}".removeprefix("0") for share in shares)


def _worst(score: Score) -> str:
    if not len(score.lost):
        return ""
    goal = score.lost[0]
    ever = f"last at step {score.last_visits[goal]:.0f}" if score.visits[goal] else "never"
    return f"{goal}: {score.exact[goal]:.2f} → {score.shares[goal]:.2f}, visited {score.visits[goal]:.0f} times, {ever}"


def _run_line(world: str, run: Run) -> str:
    score = score_of(run)
    config = run.config
    temperature = config["alpha"] / config["world"]["reward_scale"]
    cells = [
        world,
        f"{config['world']['reward_scale']:g}",
        f"{temperature:.2g}",
        f"`{run.variant}`",
        str(config["seed"]),
        _shares(score.exact),
        _shares(score.shares),
        f"{score.total_variation:.2f}",
        f"{len(score.lost)} of {len(score.modes)}",
        _worst(score),
        f"{np.abs(score.q_errors[score.modes]).max():.2g}",
    ]
    return "| " + " | ".join(cells) + " |"


RUNS = "world | scale | α / scale | algorithm | seed | exact shares | shares | TV | lost | worst lost mode | Q error / α"
SUMMARY = "algorithm | runs | median TV | worst TV | lost modes | worlds with a lost mode | median Q error / α"


def _summary_line(name: str, runs: list[tuple[str, Run]]) -> str:
    scores = [score_of(run) for _, run in runs]
    variations = [score.total_variation for score in scores]
    q_errors = [np.abs(score.q_errors[score.modes]).max() for score in scores]
    losing = {world for (world, _), score in zip(runs, scores, strict=True) if len(score.lost)}
    cells = [
        f"`{name}`",
        str(len(scores)),
        f"{np.median(variations):.2f}",
        f"{max(variations):.2f}",
        f"{sum(len(score.lost) for score in scores)} of {sum(len(score.modes) for score in scores)}",
        f"{len(losing)} of {len({world for world, _ in runs})}",
        f"{np.median(q_errors):.2g}",
    ]
    return "| " + " | ".join(cells) + " |"


def markdown(groups: Mapping[str, Group]) -> str:
    """
    :param groups: world -> variant -> runs
    :return: the whole report
    """
    complete = {world: finished(group) for world, group in groups.items()}
    lines = [f"| {RUNS} |", "|---" * len(RUNS.split(" | ")) + "|"]
    lines += [_run_line(world, run) for world, group in complete.items() for runs in group.values() for run in runs]
    by_name: dict[str, list[tuple[str, Run]]] = {}
    for world, group in complete.items():
        for name, runs in group.items():
            by_name.setdefault(name, []).extend((world, run) for run in runs)
    lines += ["", f"| {SUMMARY} |", "|---" * len(SUMMARY.split(" | ")) + "|"]
    lines += [_summary_line(name, runs) for name, runs in by_name.items()]
    lines += [
        "",
        "Shares are of sampled episodes from the origin, after the last step. A mode is a goal of an exact share of at least "
        f"{MODE}; it is lost if less than {LOST} of the episodes reach it. TV is the total variation between shares and exact "
        "shares, episodes that reach no goal being one more outcome. Q error is the largest difference between the critic and "
        "the exact soft Q-value, among the best first actions toward the modes.",
    ]
    waiting = [(world, run) for world, group in groups.items() for runs in group.values() for run in runs if not run.finished]
    lines += [""] if waiting else []
    lines += [
        f"* Not finished, so not in the tables: {world} `{run.variant}` seed {run.config['seed']} at "
        f"{run.rows[-1]['timesteps']:.0f} of {run.config['steps']} steps, TV {run.rows[-1]['total_variation']:.2f}."
        for world, run in waiting
    ]
    return "\n".join(lines) + "\n"
