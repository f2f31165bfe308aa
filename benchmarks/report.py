"""From the CSV files of runs to one markdown table per environment."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.files import Row, RunFiles
from benchmarks.statistics import Interval, difference_interval, iqm_interval

REFERENCE = "sac"
PROTOCOL = ("steps", "action_repeat", "eval_freq", "eval_episodes")


@dataclass(frozen=True)
class Run:
    """
    What is on disk of one run.

    :param config: its configuration
    :param rows: its evaluations
    """

    config: Mapping[str, Any]
    rows: Sequence[Row]

    @property
    def variant(self) -> str:
        return str(self.config["variant"])

    @property
    def finished(self) -> bool:
        return bool(self.rows) and self.rows[-1]["timesteps"] >= self.config["steps"]

    def column(self, name: str) -> np.ndarray:
        return np.array([row[name] for row in self.rows])

    def final(self, name: str, last: int) -> float:
        """The mean of the last evaluations: what the run is scored by."""
        return float(self.column(name)[-last:].mean())

    @property
    def cpu_seconds(self) -> float:
        return self.rows[-1]["cpu_seconds"]


Group = dict[str, list[Run]]


def read_runs(output: Path, envs: Sequence[str] | None = None, variants: Sequence[str] | None = None) -> dict[str, Group]:
    """
    :param output: the benchmark's folder
    :param envs: the environments wanted, in this order; all that are there by default
    :param variants: the variants wanted, in this order; all that are there by default
    :return: environment -> variant -> runs with at least one evaluation, ordered by seed; SAC first unless told
    """
    groups: dict[str, Group] = defaultdict(lambda: defaultdict(list))
    for path in sorted(output.glob("*/*_seed*.json")):
        files = RunFiles(path.with_suffix(""))
        run = Run(files.read_config() or {}, files.read_rows())
        if run.rows:
            groups[run.config["env"]][run.variant].append(run)
    wanted_envs = envs or sorted(groups)
    return {env: _ordered(groups[env], variants) for env in wanted_envs if env in groups}


def _ordered(group: Group, variants: Sequence[str] | None) -> Group:
    names = variants or sorted(group, key=_reference_first)
    return {name: sorted(group[name], key=_seed_of) for name in names if name in group}


def _reference_first(name: str) -> tuple[bool, str]:
    return name != REFERENCE, name


def _seed_of(run: Run) -> int:
    return int(run.config["seed"])


def finished(group: Group) -> Group:
    """
    :param group: the runs of one environment
    :return: the finished ones; the only ones that are scored
    """
    complete = {name: [run for run in runs if run.finished] for name, runs in group.items()}
    return {name: runs for name, runs in complete.items() if runs}


def _number(value: float, signed: bool = False) -> str:
    if not np.isfinite(value):
        return "–"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:{'+' if signed else ''}.{digits}f}"


def interval_text(interval: Interval, signed: bool = False) -> str:
    """
    :param interval: figure and bounds
    :param signed: whether a plus is written
    :return: as a table shows it
    """
    return f"{_number(interval.value, signed)} [{_number(interval.low, signed)}, {_number(interval.high, signed)}]"


def verdict(scores: Interval, reference: Interval) -> str:
    """
    :param scores: a variant's interval
    :param reference: SAC's interval
    :return: where the variant's figure lies with respect to SAC's interval
    """
    if scores.value < reference.low:
        return "below"
    return "above" if scores.value > reference.high else "inside"


HEADER = (
    "variant",
    "runs",
    "deterministic return, IQM [95 % interval]",
    "minus SAC's",
    "against SAC's interval",
    "sampled",
    "base actor",
    "mean over training",
    "mean Q",
    "overestimation",
    "CPU time / SAC's",
)


def _line(name: str, runs: Sequence[Run], reference: Sequence[Run], last: int) -> list[str]:
    scores = [run.final("return_deterministic", last) for run in runs]
    cells = [f"`{name}`", str(len(runs)), interval_text(iqm_interval(scores))]
    if reference and name != REFERENCE:
        sac = [run.final("return_deterministic", last) for run in reference]
        cells += [
            interval_text(difference_interval(scores, sac), signed=True),
            verdict(iqm_interval(scores), iqm_interval(sac)),
        ]
    else:
        cells += ["", ""]
    for column in ("return_stochastic", "return_base"):
        cells.append(_number(iqm_interval([run.final(column, last) for run in runs]).value))
    cells.append(_number(iqm_interval([run.final("return_deterministic", len(run.rows)) for run in runs]).value))
    for column in ("mean_q", "overestimation"):
        cells.append(_number(iqm_interval([run.final(column, last) for run in runs]).value, signed=column != "mean_q"))
    sac_seconds = float(np.median([run.cpu_seconds for run in reference])) if reference else float("nan")
    cells.append(_number(float(np.median([run.cpu_seconds for run in runs])) / sac_seconds))
    return cells


def env_table(env: str, group: Group, last: int) -> str:
    """
    :param env: the environment's id
    :param group: its runs
    :param last: how many evaluations at the end of a run make its score
    :return: markdown with a heading, the table and a line on whatever is not finished or not comparable
    """
    complete = finished(group)
    reference = complete.get(REFERENCE, [])
    lines = [f"### {env}", ""]
    if complete:
        protocols = {tuple(run.config[key] for key in PROTOCOL) for runs in complete.values() for run in runs}
        lines += [_protocol_sentence(protocol) for protocol in sorted(protocols)]
        lines += ["", "Caution: runs under different protocols stand in this table."] if len(protocols) > 1 else []
        lines += ["", "| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
        lines += ["| " + " | ".join(_line(name, runs, reference, last)) + " |" for name, runs in complete.items()]
    waiting = [run for runs in group.values() for run in runs if not run.finished]
    lines += [""] if waiting else []
    lines += [_progress(run) for run in waiting]
    return "\n".join(lines) + "\n"


def _protocol_sentence(protocol: tuple[int, ...]) -> str:
    steps, repeat, freq, episodes = protocol
    return f"{steps} policy steps of {repeat} environment step(s) each, evaluated every {freq} steps over {episodes} episodes."


def _progress(run: Run) -> str:
    row = run.rows[-1]
    return (
        f"* Not finished, so not in the table: `{run.variant}` seed {run.config['seed']} at {row['timesteps']:.0f} of "
        f"{run.config['steps']} steps, return {_number(row['return_deterministic'])}."
    )


def _method_note(run_counts: Iterable[int], last: int) -> str:
    fewest = min(run_counts, default=0)
    few = (
        f" With {fewest} run(s) nothing is trimmed, the interquartile mean is the mean, and a bootstrap of so few values is "
        "too narrow: read the intervals as the spread of the runs, not as a test."
        if 0 < fewest < 4
        else ""
    )
    return (
        f"A run's score is the mean of its last {last} evaluations; figures are interquartile means over runs of other seeds, "
        f"intervals 95 % percentile bootstraps over the runs' scores (stratified by algorithm for differences).{few} "
        "Evaluation episodes start from the same seeds for all. 'Deterministic' and 'sampled' are the policy as `predict` "
        "gives it, 'base actor' the mean action of the Gaussian actor alone, without refinement or choice by Q. "
        "Overestimation is mean Q minus the discounted return obtained from the same states by the sampled policy. "
        "CPU time is the training's, without evaluation, as the ratio of medians."
    )


def markdown(groups: Mapping[str, Group], last: int) -> str:
    """
    :param groups: what ``read_runs`` found
    :param last: how many evaluations at the end of a run make its score
    :return: the whole report
    """
    counts = [len(runs) for group in groups.values() for runs in finished(group).values()]
    return "\n".join([env_table(env, group, last) for env, group in groups.items()] + [_method_note(counts, last), ""])
