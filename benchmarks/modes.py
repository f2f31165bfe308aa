"""
Which modes a training finds on worlds drawn at random, whose exact shares are known: trains, resumes, reports.

``python -m benchmarks.modes --worlds 0-5 --algos sac,sac_networks,energy_sac,pgac --steps 40000 --seeds 0``
"""

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import jobs
from benchmarks.files import RunFiles, write_text
from benchmarks.jobs import Job
from benchmarks.mode_plots import draw_modes
from benchmarks.mode_report import markdown
from benchmarks.report import read_runs
from benchmarks.variants import PGAC, Variant
from sb3_energy.envs import World, draw_world
from sb3_energy.envs.exact_answers import balanced_temperature, exact_answer

ALGORITHMS = ("sac", "sac_networks", "energy_sac", "pgac")
WORLDS = range(6)
ALPHA = 3.0
"""Temperature in units of the reward scale: at much lower ones a critic has to know values to less than a hundredth."""


def worlds(text: str) -> list[int]:
    """
    :param text: seeds of worlds and ranges of them, by comma, such as ``0-5,8``
    :return: the seeds
    """
    found: list[int] = []
    for part in jobs.names(text):
        first, dash, last = part.partition("-")
        found += range(int(first), int(last if dash else first) + 1)
    if not found:
        raise argparse.ArgumentTypeError(f"must name at least one world, got {text!r}")
    return found


def parser() -> argparse.ArgumentParser:
    """
    :return: the command line
    """
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.modes", description=__doc__.strip().splitlines()[0])
    jobs.add_options(arguments, steps=40_000, seeds=("0",), output="results/modes", eval_episodes=500)
    add = arguments.add_argument
    add("--worlds", type=worlds, help="seeds of worlds, by comma, ranges as 0-5 (default: 0-5; of a report alone, all)")
    add("--reward-scale", type=float, help="of every world, in place of the drawn one")
    add(
        "--alpha",
        type=float,
        default=ALPHA,
        help="temperature in units of the world's reward scale, at least its balanced one (default %(default)s)",
    )
    return arguments


def name_of(args: argparse.Namespace, seed: int) -> str:
    """
    :param args: the command line
    :param seed: of a world
    :return: what the world is called in folders and tables
    """
    scale = "" if args.reward_scale is None else f"_scale{args.reward_scale:g}"
    return f"world{seed}{scale}" + (f"_alpha{args.alpha:g}" if args.alpha != ALPHA else "")


def solved(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """
    Solve a world, or look up what a run of the same world was told.

    :param args: the command line
    :param seed: of the world
    :return: ``world``, ``alpha`` and ``exact`` of a run's configuration, in JSON types
    :raises ValueError: if the reward scale makes no sense
    """
    drawn = draw_world(seed)
    world = World(drawn.goals, drawn.bonuses, drawn.reward_scale if args.reward_scale is None else args.reward_scale)
    description = json.loads(json.dumps(dataclasses.asdict(world)))
    for path in sorted((args.output / name_of(args, seed)).glob("*_seed*.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config["world"] == description and config["alpha_in_scales"] == args.alpha:
            return {key: config[key] for key in ("world", "alpha", "alpha_in_scales", "exact")}
    alpha = max(args.alpha * world.reward_scale, balanced_temperature(world))
    answer = exact_answer(world, alpha)
    # rounded: the last digits may differ from machine to machine, and a run may go on elsewhere
    exact = {name: np.round(getattr(answer, name), 4).tolist() for name in ("shares", "first_actions")}
    exact["q_values"] = [float(f"{value:.6g}") for value in answer.q_values]
    return {"world": description, "alpha": float(f"{alpha:.6g}"), "alpha_in_scales": args.alpha, "exact": exact}


def at_temperature(algorithm: str, alpha: float) -> Mapping[str, Any]:
    """
    :param algorithm: ``"module:Class"``
    :param alpha: temperature
    :return: keyword arguments with which the critic acts at the temperature, as in ``exp(Q / alpha)``
    """
    energy = {"guidance": 1.0, "normalize_q": False, "temperature": alpha}
    return {"ent_coef": alpha} | ({"policy_kwargs": {"energy_kwargs": energy}} if algorithm == PGAC else {})


def configuration(args: argparse.Namespace, variant: Variant, world: int, seed: int, answer: dict[str, Any]) -> dict[str, Any]:
    """
    :param args: the command line
    :param variant: the algorithm
    :param world: its seed
    :param seed: of the training
    :param answer: of the world
    :return: everything that the run's numbers depend on, in JSON types
    """
    kwargs = at_temperature(variant.algorithm, answer["alpha"])
    return jobs.configuration(args, variant, name_of(args, world), seed, fixed=answer, kwargs=kwargs)


def plan(args: argparse.Namespace) -> list[Job]:
    """
    :param args: the command line
    :return: the runs, one seed of everything before the next seed
    :raises ValueError: if an argument makes no sense, or a run of the same name has another configuration
    """
    jobs.check_options(args)
    if not args.alpha > 0.0:
        raise ValueError(f"--alpha must be above 0, got {args.alpha:g}")
    variants = jobs.chosen_variants(args, ALGORITHMS)
    answers = {world: solved(args, world) for world in args.worlds or WORLDS}
    found = []
    for seed in map(int, args.seeds):
        for world, answer in answers.items():
            for variant in variants:
                files = RunFiles.of(args.output, name_of(args, world), variant.name, seed)
                found.append(Job(files, configuration(args, variant, world, seed, answer), "benchmarks.mode_runs"))
    for job in found:
        jobs.refuse_changed(job)
    return found


def _number_first(name: str) -> tuple[int, str]:
    digits = re.match(r"world(\d+)", name)
    return int(digits[1]) if digits else 0, name


def report(args: argparse.Namespace) -> None:
    """
    Print the tables and write ``table.md`` and ``modes.png``.

    :param args: the command line
    """
    wanted = [name_of(args, world) for world in args.worlds or ()]
    found = read_runs(args.output, wanted or None, args.algos)
    groups = {world: found[world] for world in wanted or sorted(found, key=_number_first) if found.get(world)}
    if not groups:
        raise ValueError(f"--output must hold runs to report on, found none in {args.output}")
    text = markdown(groups)
    write_text(args.output / "table.md", text)
    draw_modes(groups, args.output / "modes.png")
    print(f"\n{text}\nWritten to {args.output / 'table.md'} and {args.output / 'modes.png'}.")


def main(argv: Sequence[str] | None = None) -> int:
    """
    :param argv: the command line's arguments
    :return: 0 if every run is finished, 1 if one failed, 2 for a command line that is refused
    """
    return jobs.main(parser().parse_args(argv), plan, report)


if __name__ == "__main__":
    sys.exit(main())
