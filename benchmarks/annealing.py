"""
What annealed sequential Monte Carlo is worth in two, six and seventeen dimensions, and what fewer evaluations cost.

``python -m benchmarks.annealing`` writes tables (Markdown). The energy is a product of wells, whose shares of modes, energies
and normaliser are known by quadrature in one dimension; the base is a Gaussian on one of the modes.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch as th

from benchmarks.files import write_text
from benchmarks.sampler_page import environment, table
from benchmarks.wells import Wells, two_wells
from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.stats import log_mean_exp
from sb3_energy.steps import steps

WORLDS: Mapping[str, tuple[float, tuple[int, ...]]] = {"wells": (0.15, (2, 6, 17)), "narrow wells": (0.1, (6, 17))}
"""Widths of the wells, and numbers of coordinates."""

DIMENSIONS_OF_RATIOS = (1, 2, 6)
CHUNK = 250
"""Observations at once."""

SETTINGS: Mapping[str, dict[str, Any]] = {
    "snis, 128 particles": dict(refiner="snis"),
    "snis, 1953 particles": dict(refiner="snis", n_particles=1953),
    "mala": dict(refiner="mala"),
    "mala, 60 steps": dict(refiner="mala", refiner_steps=60),
    "smc, 8 particles, 2 moves": dict(refiner="smc", n_particles=8, refiner_kwargs=dict(moves=2)),
    "smc, 16 particles, 3 moves": dict(refiner="smc", n_particles=16, refiner_kwargs=dict(moves=3)),
    "smc": dict(refiner="smc"),
    "smc, one group": dict(refiner="smc", refiner_kwargs=dict(groups=1)),
    "smc, 128 particles": dict(refiner="smc", n_particles=128),
    "smc, no gradient": dict(refiner="smc"),
}
"""Refinements as ``policy_kwargs`` name them; what is not said has its documented default."""


COLUMNS = (
    ("evaluations", "evaluations", "d"),
    ("share", "P(a < 0)", ".3f"),
    ("energy", "energy", ".3f"),
    ("log_z", "error of log Z", "+.2f"),
    ("spread", "its spread", ".2f"),
)
"""Keys, headings and formats of the tables' numbers."""


def make(name: str) -> Refinement:
    """
    :param name: of :data:`SETTINGS`
    :return: the refinement
    """
    return RefinementArguments(**SETTINGS[name]).make_refinement()


class Detached:
    """
    Wells whose gradient cannot be had.

    :param wells: the energy
    """

    def __init__(self, wells: Wells):
        self.wells = wells

    def __call__(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: ``(B, N, *E)``
        :return: ``(B, N)``, without a graph
        """
        return self.wells(actions.detach())


def log_normalizers(way: Refinement, wells: Wells, dimension: int, batch: int) -> th.Tensor:
    """
    :param way: a refinement by ``smc`` or ``snis``
    :param wells: the energy
    :param dimension: of an action
    :param batch: how many observations
    :return: ``(batch,)`` estimates of ``log ∫ exp(-E)`` in the box
    """
    base = wells.base(batch, dimension)
    chains = way.simulate(base, wells)
    width = way.coordinates(base).scale.log().flatten(1).sum(1)  # type: ignore[attr-defined]
    if not hasattr(way.refiner, "moves"):
        return log_mean_exp(chains.refiner.init(chains.particles, chains.target).extra, dim=1) + width
    state: Any = None
    for step in steps(chains.refiner, chains.particles, chains.target, n_steps=chains.n_steps):
        state = step.after
    return state.extra.log_normalizer + width


def measured(name: str, std: float, dimension: int, n: int) -> dict[str, Any]:
    """
    :param name: of :data:`SETTINGS`
    :param std: width of the wells
    :param dimension: of an action
    :param n: how many draws, each for an observation of its own
    :return: a row of the table
    """
    way, wells = make(name), two_wells(std)
    energy: Any = Detached(wells) if name.endswith("no gradient") else wells
    with th.no_grad(), th.random.fork_rng(devices=[]):
        th.manual_seed(0)
        batches = [min(CHUNK, n - start) for start in range(0, n, CHUNK)]
        draws = th.cat([th.tanh(way.sample(wells.base(batch, dimension), energy)) for batch in batches])
        evaluations = wells.n_evaluations / len(batches)
        found = dict(
            setting=name,
            evaluations=round(evaluations),
            share=float((draws < 0.0).double().mean()),
            energy=float(wells.well(draws.double()).mean()),
        )
        if way.refiner.resamples and energy is wells:
            errors = th.cat([log_normalizers(way, wells, dimension, batch) for batch in batches])
            errors = errors.double() - dimension * wells.log_normalizer
            found |= dict(log_z=float(errors.mean()), spread=float(errors.std()))
    return found


def ratios(n: int, dimension: int, **refiner_kwargs: Any) -> tuple[float, float]:
    """
    :param n: how many estimates
    :param dimension: of an action
    :param refiner_kwargs: of ``smc``
    :return: the mean of ``Z / Z_true``, and its standard error
    """
    way, wells = RefinementArguments("smc", refiner_kwargs).make_refinement(), two_wells()
    with th.no_grad(), th.random.fork_rng(devices=[]):
        th.manual_seed(0)
        logs = [log_normalizers(way, wells, dimension, min(CHUNK * 4, n - start)) for start in range(0, n, CHUNK * 4)]
    found = (th.cat(logs).double() - dimension * wells.log_normalizer).exp()
    return float(found.mean()), float(found.std()) / math.sqrt(len(found))


def page(n: int) -> str:
    """
    :param n: how many draws for each setting
    :return: Markdown
    """
    parts = []
    for world, (std, dimensions) in WORLDS.items():
        wells = two_wells(std)
        for dimension in dimensions:
            rows = [dict(setting="quadrature", share=wells.share, energy=wells.mean_energy, log_z=0.0)]
            rows += [measured(name, std, dimension, n) for name in SETTINGS]
            columns = [f"{world}, {dimension} dimensions", *(heading for _, heading, _ in COLUMNS)]
            cells = [[row["setting"], *(_cell(row, key, form) for key, _, form in COLUMNS)] for row in rows]
            parts.append(table(columns, cells))
    biases = []
    for label, kwargs in (("fixed", dict(ladder="fixed", step_size=0.3)), ("adaptive", {})):
        found = [ratios(8 * n, dimension, **kwargs) for dimension in DIMENSIONS_OF_RATIOS]
        biases.append([label, *(f"{mean:.3f} ± {error:.3f}" for mean, error in found)])
    parts.append(table(["Z / true Z", *(f"{dimension} dimensions" for dimension in DIMENSIONS_OF_RATIOS)], biases))
    return "\n\n".join([*parts, environment()])


def _cell(row: Mapping[str, Any], key: str, form: str) -> str:
    return format(row[key], form) if key in row else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """
    :param arguments: of the command line (``None``: the process's)
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000, help="for each setting")
    parser.add_argument("--output", type=Path, default=None, help="a file in place of the terminal")
    args = parser.parse_args(arguments)
    text = page(args.draws)
    if args.output is None:
        sys.stdout.write(text + "\n")
    else:
        write_text(args.output, text + "\n")


if __name__ == "__main__":
    th.set_num_threads(1)
    main()
