"""Runs of a benchmark: which ones its command line asks for, each in a process of its own, none begun with other settings."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.files import RunFiles
from benchmarks.variants import VARIANTS, Variant, defaults_of, find_variant, merge, parse_json_object, parse_variant

# One thread each: small networks on several threads spend more time waiting than computing.
CHILD_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MUJOCO_GL": os.environ.get("MUJOCO_GL", "disabled")}


@dataclass(frozen=True)
class Job:
    """
    :param files: where the run lives
    :param config: its whole configuration
    :param module: what trains it, given the configuration's file
    """

    files: RunFiles
    config: Mapping[str, Any]
    module: str

    @property
    def label(self) -> str:
        return f"{self.config['env']} {self.config['variant']} seed {self.config['seed']}"


def names(text: str) -> list[str]:
    """
    :param text: names by comma
    :return: the names
    """
    return [name.strip() for name in text.split(",") if name.strip()]


def add_options(arguments: argparse.ArgumentParser, steps: int, seeds: Sequence[str], output: str, eval_episodes: int) -> None:
    """
    Add what every benchmark of trainings takes.

    :param arguments: the command line
    :param steps: default of ``--steps``
    :param seeds: default of ``--seeds``
    :param output: default of ``--output``
    :param eval_episodes: default of ``--eval-episodes``
    """
    add = arguments.add_argument
    add("--algos", type=names, help=f"variants, by comma: {', '.join(VARIANTS)}, or the name of a --variant")
    add("--steps", type=int, default=steps, help="policy steps of a run (default %(default)s)")
    add("--seeds", type=names, default=list(seeds), help=f"by comma (default {','.join(seeds)})")
    add("--variant", action="append", default=[], metavar="NAME=JSON", help="keyword arguments of EnergySAC, under a new name")
    add("--common", default="{}", metavar="JSON", help="keyword arguments for every algorithm, SAC included")
    add("--jobs", type=int, default=1, help="runs at a time, one thread each (default %(default)s)")
    add("--output", type=Path, default=Path(output), help="folder of the results (default %(default)s)")
    add("--eval-freq", type=int, help="steps between evaluations (default: a tenth of the run)")
    add("--eval-episodes", type=int, default=eval_episodes, help="episodes of an evaluation (default %(default)s)")
    add(
        "--matmul-precision",
        choices=("highest", "medium"),
        default="highest",
        help="of the updates, as torch.set_float32_matmul_precision has it; medium may be faster, and may round to bfloat16",
    )
    add("--report-only", action="store_true", help="train nothing")


def check_options(args: argparse.Namespace, *whole: str) -> None:
    """
    :param args: the command line
    :param whole: names of further options that are whole numbers of at least 1
    :raises ValueError: if an option makes no sense
    """
    for name in ("steps", "jobs", "eval_episodes", *whole):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if not all(seed.isdigit() for seed in args.seeds):
        raise ValueError(f"--seeds must be whole numbers by comma, got {','.join(args.seeds)!r}")


def chosen_variants(args: argparse.Namespace, default: Sequence[str] = ()) -> list[Variant]:
    """
    :param args: the command line
    :param default: names that are taken without ``--algos``
    :return: the variants that ``--algos`` names, of the table or of ``--variant``
    :raises ValueError: if there is no such variant, or none is named
    """
    own = {variant.name: variant for variant in map(parse_variant, args.variant)}
    chosen = [find_variant(name, {**VARIANTS, **own}) for name in args.algos or default]
    if not chosen:
        raise ValueError("--algos must name at least one variant, or --report-only be given")
    return chosen


def configuration(
    args: argparse.Namespace, variant: Variant, env: str, seed: int, fixed: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """
    :param args: the command line
    :param variant: the algorithm
    :param env: what it is trained on, as tables name it
    :param seed: the seed
    :param fixed: what else the run's numbers depend on
    :param kwargs: keyword arguments that the benchmark sets, under those of ``--common`` and of the variant
    :return: everything that the run's numbers depend on, in JSON types
    """
    # A replay buffer longer than the run holds the same transitions; at SB3's million the checkpoints would be large.
    base = merge({"buffer_size": min(1_000_000, args.steps)}, kwargs)
    all_kwargs = merge(merge(base, parse_json_object(args.common, "--common")), variant.kwargs)
    return {
        "variant": variant.name,
        "algorithm": variant.algorithm,
        "kwargs": all_kwargs,
        "defaults": defaults_of(replace(variant, kwargs=all_kwargs)),
        "env": env,
        "seed": seed,
        "steps": args.steps,
        "matmul_precision": args.matmul_precision,
        "eval_freq": args.eval_freq or max(args.steps // 10, 1),
        "eval_episodes": args.eval_episodes,
        **fixed,
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


def refuse_changed(job: Job) -> None:
    """
    :param job: a run
    :raises ValueError: if it was begun with another configuration
    """
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
    command = [sys.executable, "-m", job.module, str(job.files.config)]
    with open(job.files.log, "a", encoding="utf-8") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **CHILD_ENVIRONMENT}
        )
        status = child.wait()
    outcome = "finished" if status == 0 else f"FAILED with status {status}, see {job.files.log}"
    print(f"{outcome}: {job.label}, {time.monotonic() - start:.0f} s", flush=True)
    return status


def main(
    args: argparse.Namespace,
    plan: Callable[[argparse.Namespace], list[Job]],
    report: Callable[[argparse.Namespace], None],
    refused: tuple[type[Exception], ...] = (ValueError,),
) -> int:
    """
    :param args: the command line
    :param plan: the runs that it asks for
    :param report: what is printed and written in the end
    :param refused: errors that say that the command line makes no sense
    :return: 0 if every run is finished, 1 if one failed, 2 for a command line that is refused
    """
    try:
        jobs = [] if args.report_only else plan(args)
        with ThreadPoolExecutor(args.jobs) as pool:
            statuses = list(pool.map(run_job, jobs))
        report(args)
    except refused as error:
        print(error, file=sys.stderr)
        return 2
    return int(any(statuses))
