"""
The gallery of refiners in 2, 6, 17 and 38 dimensions: what draws and entropies are worth there, and what they cost.

``python -m benchmarks.wide_samplers`` draws from densities with known answers (:mod:`benchmarks.wide_targets`), one file for
each seed, times predictions, and writes tables (Markdown). ``--docs`` puts them into ``docs/refiners.md``.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch as th

from benchmarks.files import write_text
from benchmarks.sampler_costs import model_of, relative_times
from benchmarks.sampler_draws import Counts, fitted_base
from benchmarks.tables import put_table
from benchmarks.wide_entropies import ESTIMATORS, estimates
from benchmarks.wide_page import Row, tables
from benchmarks.wide_targets import Truth, WideTarget, wide_targets
from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.refinement import Refinement

DIMENSIONS = (2, 6, 17, 38)
"""The last two are those of the actions of Humanoid-v5 and of dm_control's dog."""

SETTINGS: dict[str, dict[str, Any]] = {
    "none": dict(refiner="none"),
    "snis": dict(refiner="snis"),
    "langevin": dict(refiner="langevin"),
    "mala": {},
    "mala, 60 steps": dict(refiner_steps=60),
    "hmc": dict(refiner="hmc"),
    "hmc, 20 steps": dict(refiner="hmc", refiner_steps=20),
    "hmc, 60 steps": dict(refiner="hmc", refiner_steps=60),
    "svgd": dict(refiner="svgd"),
    "mppi": dict(refiner="mppi"),
    "derivative_free": dict(refiner="derivative_free"),
    "smc, 16 particles, 3 moves": dict(refiner="smc", n_particles=16, refiner_kwargs=dict(moves=3)),
    "smc, 2 moves": dict(refiner="smc", refiner_kwargs=dict(moves=2)),
    "smc": dict(refiner="smc"),
    "smc, 30 rungs": dict(refiner="smc", refiner_steps=30),
}
"""Arguments of a policy. Refiners that learn are not among them: what they are worth depends on what they have learned."""

UNTIMED = "smc, 30 rungs"
"""It takes three times the time of ``smc``, many seconds for a batch."""


class Problem:
    """
    A density, what is known of it, and the Gaussian that SAC's actor loss fits to it.

    :param target: the density
    """

    def __init__(self, target: WideTarget):
        self.target, self.truth = target, Truth(target)
        self._base = fitted_base(target.energy, dimension=target.dimension)

    def bases(self, n: int) -> Gaussian:
        """
        :param n: of observations
        :return: the Gaussian at each
        """
        return Gaussian(*(part.repeat(n, 1) for part in self._base))


@cache
def problem(dimension: int, name: str) -> Problem:
    """
    :param dimension: ``d``
    :param name: of the density
    :return: the same to all seeds
    """
    return Problem(wide_targets(dimension)[name])


def draws_of(refinement: Refinement, found: Problem, n: int, counts: Counts) -> th.Tensor:
    """
    :param refinement: as a policy has it
    :param found: what to draw from
    :param n: how many draws, each for an observation of its own
    :param counts: to which evaluations are added
    :return: ``(n, d)`` in the box
    """
    base = found.bases(n)
    if refinement.is_identity:
        return th.tanh(base.mean + base.std * th.randn_like(base.mean))
    return th.tanh(refinement.sample(base, counts.energy(found.target.energy)).detach())


def errors_of(draws: th.Tensor, found: Problem) -> dict[str, float]:
    """
    :param draws: ``(n, d)`` in the box
    :param found: what they should be draws of
    :return: the share of the smaller mode, the standard deviation of a coordinate over the exact one, and the energy for each
        dimension beyond the exact one
    """
    energy = float(found.target.energy(draws.unsqueeze(0)).mean()) / found.target.dimension
    return dict(
        share=float(found.target.side(draws).double().mean()),
        spread=float(draws.std(dim=0).mean()) / found.truth.spread,
        energy=energy - found.truth.energy,
    )


def drawn(seed: int, dimensions: Sequence[int], n: int) -> list[Row]:
    """
    :param seed: of the noise
    :param dimensions: of the densities
    :param n: of draws
    :return: one row for each density, dimension and refiner, with evaluations for one state
    """
    rows: list[Row] = []
    for dimension in dimensions:
        for target in wide_targets(dimension):
            found = problem(dimension, target)
            for refiner, arguments in SETTINGS.items():
                th.manual_seed(seed)
                counts = Counts()
                errors = errors_of(draws_of(RefinementArguments(**arguments).make_refinement(), found, n, counts), found)
                costs = dict(energies=counts.energies / n, gradients=counts.gradients / n, exact_share=found.truth.share)
                rows.append(dict(target=target, dimension=dimension, refiner=refiner, **errors, **costs))
    return rows


def estimated(seed: int, dimensions: Sequence[int], n: int) -> list[Row]:
    """
    :param seed: of the noise
    :param dimensions: of the densities
    :param n: of observations
    :return: one row for each density, dimension and estimator: errors of entropy and log-normaliser, and their deviation
        from one observation to the next, in nats
    """
    rows: list[Row] = []
    for dimension in dimensions:
        for target in wide_targets(dimension):
            found = problem(dimension, target)
            for name in ESTIMATORS:
                th.manual_seed(seed)
                counts = Counts()
                entropy, log_normalizer = estimates(name, found.bases(n), counts.energy(found.target.energy))
                errors = dict(entropy=float(entropy.mean()) - found.truth.entropy, deviation=float(entropy.std()))
                errors["log_normalizer"] = float(log_normalizer.mean()) - found.truth.log_normalizer
                costs = dict(energies=counts.energies / n, gradients=counts.gradients / n)
                rows.append(dict(target=target, dimension=dimension, estimator=name, **errors, **costs))
    return rows


def prices(dimension: int, rounds: int) -> list[Row]:
    """
    Times of ``policy.predict`` over those of ``refiner="none"``. Energies of an untrained critic are flat, where an adaptive
    ladder has one rung; ``smc`` is timed with all of them, which is the most that it takes.

    :param dimension: of an action
    :param rounds: the median over which is taken
    :return: one row for each refiner
    """
    models = {name: model_of(dimension, **timed(arguments)) for name, arguments in SETTINGS.items() if name != UNTIMED}
    times = relative_times(models, rounds)
    return [
        dict(dimension=dimension, refiner=refiner, **{f"batch {batch}": time for batch, time in found.items()})
        for refiner, found in times.items()
    ]


def timed(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param arguments: of a policy
    :return: with a ladder whose rungs do not depend on the energy
    """
    if arguments.get("refiner") != "smc":
        return dict(arguments)
    return dict(arguments) | dict(refiner_kwargs=dict(arguments.get("refiner_kwargs", {}), ladder="fixed"))


def measured(args: argparse.Namespace) -> tuple[list[Row], list[Row], list[Row]]:
    """
    :param args: the settings
    :return: draws, estimates and prices; what is on disk is not measured again
    """
    draws: list[Row] = []
    entropies: list[Row] = []
    for seed in map(int, args.seeds.split(",")):
        path = args.output / f"seed{seed}.json"
        if not path.exists():
            both = drawn(seed, args.dimensions, args.draws), estimated(seed, args.dimensions, args.observations)
            write_text(path, json.dumps(both))
            print(f"finished: seed {seed}", flush=True)
        more = json.loads(path.read_text(encoding="utf-8"))
        draws, entropies = draws + more[0], entropies + more[1]
    times: list[Row] = []
    for dimension in args.dimensions:
        path = args.output / f"prices{dimension}.json"
        if not path.exists():
            write_text(path, json.dumps(prices(dimension, args.rounds)))
        times += json.loads(path.read_text(encoding="utf-8"))
    return draws, entropies, times


def main(argv: Sequence[str] | None = None) -> int:
    """
    :param argv: the command line's arguments
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.wide_samplers", description=(__doc__ or "").strip().splitlines()[0]
    )
    parser.add_argument("--seeds", default="0,1,2,3,4", help="by comma")
    parser.add_argument("--dimensions", type=int, nargs="+", default=DIMENSIONS)
    parser.add_argument("--draws", type=int, default=300, help="for each seed, density and refiner (default %(default)s)")
    parser.add_argument("--observations", type=int, default=100, help="of the entropy's estimates (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="of the timing (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("results/wide_samplers"), help="folder (default %(default)s)")
    parser.add_argument("--docs", action="store_true", help="also write the tables into docs/refiners.md")
    args = parser.parse_args(argv)
    th.set_num_threads(1)
    text = tables(*measured(args))
    write_text(args.output / "table.md", text)
    if args.docs:
        put_table(Path("docs/refiners.md"), "wide gallery", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
