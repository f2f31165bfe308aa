"""
Implicit and explicit clones of the particle's expert, from the same networks and data: trains, resumes, reports.

``python -m benchmarks.particle --dims 2,8 --steps 20000 --seeds 0,1``

Each success is that of episodes whose starts no demonstration has had. In one and two dimensions the energy is also searched
on a grid: where that succeeds and the policy does not, the search is at fault, where it does not either, the energy is.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import jobs
from benchmarks.files import RunFiles, write_text
from benchmarks.jobs import Job
from benchmarks.report import Group, Run, read_runs
from benchmarks.variants import Variant, defaults_of, find_variant, merge, parse_json_object, parse_variant

IBC, BC, NEAREST = (f"sb3_energy:{name}" for name in ("IBC", "BC", "NearestNeighbour"))
CHAIN: dict[str, Any] = {"negatives": "chain", "n_negatives": 8, "chain_steps": 50}
CLONES: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("ibc", IBC),
        Variant("ibc_chain", IBC, {"energy_training_kwargs": CHAIN, "policy_kwargs": {"refiner": "annealed_gradient"}}),
        Variant("ibc_r_nce", IBC, {"loss": "r_nce"}),
        Variant("mse", BC, {"learning_rate": 1e-3, "policy_kwargs": {"head": "mse"}}),
        Variant("mixture", BC, {"learning_rate": 1e-3, "policy_kwargs": {"head": "mixture"}}),
        Variant("nearest", NEAREST),
    )
}
DEFAULT = ("ibc", "mse", "mixture", "nearest")


def parser() -> argparse.ArgumentParser:
    """
    :return: the command line
    """
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.particle", description=__doc__.strip().splitlines()[0])
    add = arguments.add_argument
    add("--algos", type=jobs.names, help=f"by comma: {', '.join(CLONES)}, or the name of a --variant")
    add("--dims", type=jobs.names, default=["2"], help="dimensions of the particle, 1 to 32, by comma (default 2)")
    add("--steps", type=int, default=20_000, help="gradient steps of a run (default %(default)s)")
    add("--seeds", type=jobs.names, default=["0"], help="by comma (default 0)")
    add("--demonstrations", type=int, default=2000, help="episodes of the expert (default %(default)s)")
    add("--net-arch", type=jobs.names, default=["256", "256"], help="widths of every network, by comma (default 256,256)")
    add("--variant", action="append", default=[], metavar="NAME=JSON", help="keyword arguments of IBC, under a new name")
    add("--common", default="{}", metavar="JSON", help="keyword arguments for every algorithm with networks")
    add("--jobs", type=int, default=1, help="runs at a time, one thread each (default %(default)s)")
    add("--output", type=Path, default=Path("results/particle"), help="folder of the results (default %(default)s)")
    add("--eval-freq", type=int, help="steps between evaluations (default: a quarter of the run)")
    add("--eval-episodes", type=int, default=100, help="episodes of an evaluation (default %(default)s)")
    add("--report-only", action="store_true", help="train nothing")
    return arguments


def configuration(args: argparse.Namespace, variant: Variant, n_dims: int, seed: int) -> dict[str, Any]:
    """
    :param args: the command line
    :param variant: the clone
    :param n_dims: of the particle
    :param seed: of the training
    :return: everything that the run's numbers depend on, in JSON types
    """
    kwargs: Mapping[str, Any] = variant.kwargs
    if variant.algorithm != NEAREST:
        shared = merge({"policy_kwargs": {"net_arch": [int(n) for n in args.net_arch]}}, {"batch_size": 128})
        kwargs = merge(merge(shared, parse_json_object(args.common, "--common")), kwargs)
    return {
        "variant": variant.name,
        "algorithm": variant.algorithm,
        "kwargs": dict(kwargs),
        "defaults": defaults_of(variant),
        "env": f"particle{n_dims}",
        "n_dims": n_dims,
        "demonstrations": args.demonstrations,
        "seed": seed,
        "steps": 1 if variant.algorithm == NEAREST else args.steps,
        "eval_freq": args.eval_freq or max(args.steps // 4, 1),
        "eval_episodes": args.eval_episodes,
    }


def plan(args: argparse.Namespace) -> list[Job]:
    """
    :param args: the command line
    :return: the runs, one seed of everything before the next seed
    :raises ValueError: if an argument makes no sense, or a run of the same name has another configuration
    """
    jobs.check_options(args, "demonstrations")
    for name in ("dims", "net_arch"):
        if not all(number.isdigit() and int(number) > 0 for number in getattr(args, name)):
            option, given = name.replace("_", "-"), ",".join(getattr(args, name))
            raise ValueError(f"--{option} must be whole numbers above 0, by comma, got {given!r}")
    if max(map(int, args.dims)) > 32:
        raise ValueError(f"--dims must be at most 32, got {','.join(args.dims)}")
    known = CLONES | {one.name: replace(one, algorithm=IBC) for one in map(parse_variant, args.variant)}
    variants = [find_variant(name, known) for name in args.algos or DEFAULT]
    found = []
    for seed in map(int, args.seeds):
        for n_dims in map(int, args.dims):
            for variant in variants:
                config = configuration(args, variant, n_dims, seed)
                files = RunFiles.of(args.output, config["env"], variant.name, seed)
                found.append(Job(files, config, "benchmarks.particle_runs"))
    for job in found:
        jobs.refuse_changed(job)
    return found


def markdown(groups: Mapping[str, Group]) -> str:
    """
    :param groups: runs by world and clone
    :return: a table with the last success of each seed
    """
    lines = [
        "| dimensions | clone | success | on a grid | seeds | gradient steps | CPU seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for world, group in groups.items():
        lines += [_line(world.removeprefix("particle"), name, runs) for name, runs in group.items() if runs]
    return "\n".join(lines) + "\n"


def _line(n_dims: str, name: str, runs: Sequence[Run]) -> str:
    last = [run.rows[-1] for run in runs]
    successes, grid = (np.array([row[column] for row in last]) for column in ("success", "grid_success"))
    steps = "–".join(f"{step:,.0f}" for step in sorted({row["timesteps"] for row in last}))
    seconds = np.mean([row["cpu_seconds"] for row in last])
    return f"| {n_dims} | {name} | {_mean(successes)} | {_mean(grid)} | {len(runs)} | {steps} | {seconds:,.0f} |"


def _mean(values: np.ndarray) -> str:
    if np.isnan(values).any():
        return "–"
    each = "" if len(values) == 1 else f" ({', '.join(f'{value:.2f}' for value in values)})"
    return f"{values.mean():.2f}{each}"


def report(args: argparse.Namespace) -> None:
    """
    Print the table and write ``table.md``.

    :param args: the command line
    """
    found = read_runs(args.output, None, args.algos)
    groups = {world: found[world] for world in sorted(found, key=lambda name: int(name.removeprefix("particle")))}
    if not groups:
        raise ValueError(f"--output must hold runs to report on, found none in {args.output}")
    text = markdown(groups)
    write_text(args.output / "table.md", text)
    print(f"\n{text}\nWritten to {args.output / 'table.md'}.")


def main(argv: Sequence[str] | None = None) -> int:
    """
    :param argv: the command line's arguments
    :return: 0 if every run is finished, 1 if one failed, 2 for a command line that is refused
    """
    return jobs.main(parser().parse_args(argv), plan, report)


if __name__ == "__main__":
    sys.exit(main())
