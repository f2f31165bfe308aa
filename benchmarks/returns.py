"""
Returns of EnergySAC beside Stable-Baselines3's own SAC: trains, resumes, reports.

``python -m benchmarks.returns --algos sac,energy_sac --envs Pendulum-v1,dm_control/cheetah-run-v0 --steps 30000``
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym

from benchmarks.envs import default_action_repeat
from benchmarks.files import RunFiles, write_text
from benchmarks.plots import learning_curves
from benchmarks.report import markdown, read_runs
from benchmarks.variants import (
    VARIANTS,
    Variant,
    defaults_of,
    find_variant,
    merge,
    parse_json_object,
    parse_variant,
)

# One thread each: small networks on several threads spend more time waiting than computing.
CHILD_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MUJOCO_GL": os.environ.get("MUJOCO_GL", "disabled")}


@dataclass(frozen=True)
class Job:
    """
    :param files: where the run lives
    :param config: its whole configuration
    """

    files: RunFiles
    config: Mapping[str, Any]

    @property
    def label(self) -> str:
        return f"{self.config['env']} {self.config['variant']} seed {self.config['seed']}"


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def parser() -> argparse.ArgumentParser:
    """
    :return: the command line
    """
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.returns", description=__doc__.strip().splitlines()[0])
    add = arguments.add_argument
    add("--algos", type=_names, help=f"variants, by comma: {', '.join(VARIANTS)}, or the name of a --variant")
    add("--envs", type=_names, help="gymnasium ids, by comma; dm_control/<domain>-<task>-v0 comes through shimmy")
    add("--steps", type=int, default=30_000, help="policy steps of a run (default %(default)s)")
    add("--seeds", type=_names, default=["0", "1", "2"], help="by comma (default 0,1,2)")
    add("--variant", action="append", default=[], metavar="NAME=JSON", help="keyword arguments of EnergySAC, under a new name")
    add("--common", default="{}", metavar="JSON", help="keyword arguments for every algorithm, SAC included")
    add("--jobs", type=int, default=1, help="runs at a time, one thread each (default %(default)s)")
    add("--output", type=Path, default=Path("results/returns"), help="folder of the results (default %(default)s)")
    add("--eval-freq", type=int, help="steps between evaluations (default: a tenth of the run)")
    add("--eval-episodes", type=int, default=5, help="episodes of each kind at an evaluation (default %(default)s)")
    add("--action-repeat", type=int, help="environment steps per policy step (default: 2 for dm_control, else 1)")
    add("--last", type=int, default=3, help="evaluations at the end of a run that make its score (default %(default)s)")
    add(
        "--matmul-precision",
        choices=("highest", "medium"),
        default="highest",
        help="of the updates, as torch.set_float32_matmul_precision has it; medium may be faster, and may round to bfloat16",
    )
    add("--report-only", action="store_true", help="train nothing")
    return arguments


def configuration(args: argparse.Namespace, variant: Variant, env_id: str, seed: int) -> dict[str, Any]:
    """
    :param args: the command line
    :param variant: the algorithm
    :param env_id: the environment
    :param seed: the seed
    :return: everything that the run's numbers depend on, in JSON types
    """
    # A replay buffer longer than the run holds the same transitions; at SB3's million the checkpoints would be large.
    buffer = {"buffer_size": min(1_000_000, args.steps)}
    kwargs = merge(merge(buffer, parse_json_object(args.common, "--common")), variant.kwargs)
    return {
        "variant": variant.name,
        "algorithm": variant.algorithm,
        "kwargs": kwargs,
        "defaults": defaults_of(replace(variant, kwargs=kwargs)),
        "env": env_id,
        "seed": seed,
        "steps": args.steps,
        "action_repeat": args.action_repeat or default_action_repeat(env_id),
        "matmul_precision": args.matmul_precision,
        "eval_freq": args.eval_freq or max(args.steps // 10, 1),
        "eval_episodes": args.eval_episodes,
    }


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    # A default that was not there then, or is not there any more, is an argument that came or went: it says nothing.
    keys = old.keys() & new.keys() if prefix == "defaults." else old.keys() | new.keys()
    for key in sorted(keys):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key} was {before!r}, is {after!r}")
    return found


def plan(args: argparse.Namespace) -> list[Job]:
    """
    :param args: the command line
    :return: the runs, one seed of everything before the next seed
    :raises ValueError: if an argument makes no sense, or a run of the same name has another configuration
    """
    for name in ("steps", "jobs", "eval_episodes", "last"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if not args.algos or not args.envs:
        raise ValueError("--algos and --envs must name at least one each, or --report-only be given")
    if not all(seed.isdigit() for seed in args.seeds):
        raise ValueError(f"--seeds must be whole numbers by comma, got {','.join(args.seeds)!r}")
    own = {variant.name: variant for variant in map(parse_variant, args.variant)}
    variants = [find_variant(name, {**VARIANTS, **own}) for name in args.algos]
    jobs = []
    for seed in map(int, args.seeds):
        for env_id in args.envs:
            for variant in variants:
                files = RunFiles.of(args.output, env_id, variant.name, seed)
                jobs.append(Job(files, configuration(args, variant, env_id, seed)))
    for job in jobs:
        _refuse_changed(job)
    return jobs


def _refuse_changed(job: Job) -> None:
    existing = job.files.read_config()
    changes = "; ".join(_differences(existing or job.config, job.config))
    if changes:
        raise ValueError(
            f"{job.files.csv} was begun with another configuration ({changes}): remove it and its siblings, "
            "choose another --output, or give the variant another name"
        )


def run_job(job: Job) -> int:
    """
    Train in a process of its own, which ends when this one does.

    :param job: the run
    :return: the exit status
    """
    if job.files.is_finished(job.config["steps"]):
        print(f"finished before: {job.label}", flush=True)
        return 0
    if job.files.read_config() is None:
        job.files.write_config(job.config)
    print(f"starts: {job.label}", flush=True)
    start = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.runs", str(job.files.config)]
    with open(job.files.log, "a", encoding="utf-8") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **CHILD_ENVIRONMENT}
        )
        status = child.wait()
    outcome = "finished" if status == 0 else f"FAILED with status {status}, see {job.files.log}"
    print(f"{outcome}: {job.label}, {time.monotonic() - start:.0f} s", flush=True)
    return status


def report(args: argparse.Namespace) -> None:
    """
    Print the tables and write ``table.md`` and ``learning_curves.png``.

    :param args: the command line
    """
    groups = read_runs(args.output, args.envs, args.algos)
    if not groups:
        raise ValueError(f"--output must hold runs to report on, found none in {args.output}")
    text = markdown(groups, args.last)
    write_text(args.output / "table.md", text)
    learning_curves(groups, args.output / "learning_curves.png")
    print(f"\n{text}\nWritten to {args.output / 'table.md'} and {args.output / 'learning_curves.png'}.")


def main(argv: Sequence[str] | None = None) -> int:
    """
    :param argv: the command line's arguments
    :return: 0 if every run is finished, 1 if one failed, 2 for a command line that is refused
    """
    args = parser().parse_args(argv)
    try:
        jobs = [] if args.report_only else plan(args)
        with ThreadPoolExecutor(args.jobs) as pool:
            statuses = list(pool.map(run_job, jobs))
        report(args)
    except (ValueError, gym.error.Error) as error:
        print(error, file=sys.stderr)
        return 2
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main())
