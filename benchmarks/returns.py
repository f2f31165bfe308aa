"""
Returns of EnergySAC beside Stable-Baselines3's own SAC: trains, resumes, reports.

``python -m benchmarks.returns --algos sac,energy_sac --envs Pendulum-v1,dm_control/cheetah-run-v0 --steps 30000``
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from benchmarks import jobs
from benchmarks.envs import default_action_repeat
from benchmarks.files import RunFiles, write_text
from benchmarks.jobs import Job
from benchmarks.plots import learning_curves
from benchmarks.report import markdown, read_runs
from benchmarks.variants import Variant


def parser() -> argparse.ArgumentParser:
    """
    :return: the command line
    """
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.returns", description=__doc__.strip().splitlines()[0])
    jobs.add_options(arguments, steps=30_000, seeds=("0", "1", "2"), output="results/returns", eval_episodes=5)
    add = arguments.add_argument
    add("--envs", type=jobs.names, help="gymnasium ids, by comma; dm_control/<domain>-<task>-v0 comes through shimmy")
    add("--action-repeat", type=int, help="environment steps per policy step (default: 2 for dm_control, else 1)")
    add("--last", type=int, default=3, help="evaluations at the end of a run that make its score (default %(default)s)")
    return arguments


def configuration(args: argparse.Namespace, variant: Variant, env_id: str, seed: int) -> dict[str, Any]:
    """
    :param args: the command line
    :param variant: the algorithm
    :param env_id: the environment
    :param seed: the seed
    :return: everything that the run's numbers depend on, in JSON types
    """
    repeat = args.action_repeat or default_action_repeat(env_id)
    return jobs.configuration(args, variant, env_id, seed, fixed={"action_repeat": repeat}, kwargs={})


def plan(args: argparse.Namespace) -> list[Job]:
    """
    :param args: the command line
    :return: the runs, one seed of everything before the next seed
    :raises ValueError: if an argument makes no sense, or a run of the same name has another configuration
    """
    jobs.check_options(args, "last")
    if not args.envs:
        raise ValueError("--envs must name at least one environment, or --report-only be given")
    variants = jobs.chosen_variants(args)
    found = []
    for seed in map(int, args.seeds):
        for env_id in args.envs:
            for variant in variants:
                files = RunFiles.of(args.output, env_id, variant.name, seed)
                found.append(Job(files, configuration(args, variant, env_id, seed), "benchmarks.runs"))
    for job in found:
        jobs.refuse_changed(job)
    return found


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
    return jobs.main(parser().parse_args(argv), plan, report, refused=(ValueError, gym.error.Error))


if __name__ == "__main__":
    sys.exit(main())
