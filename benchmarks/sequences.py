"""
What a few steps of a chain are worth after a flow: a product of wells, and a flow whose draws are it convolved with noise.

``python -m benchmarks.sequences`` writes tables (Markdown). The velocity is known in closed form, and so is every number that
the draws are compared with, by quadrature in one dimension. Flows that have learned three of the gallery's targets follow, and
what a prediction costs.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch as th

from benchmarks.files import write_text
from benchmarks.sampler_costs import BATCHES, model_of, relative_times
from benchmarks.sampler_draws import Counts, Problem, fitted_base, fitted_head
from benchmarks.sampler_draws import draws_of as gallery_draws_of
from benchmarks.sampler_page import EXACT, environment, table
from benchmarks.sampler_targets import CellProbabilities, targets
from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.types import Head

CHUNK = 2_000
DIMENSIONS = (2, 6)
N_BINS, SPAN = 60, 2.0
"""Cells of one coordinate, and how far from 0 they reach."""


@dataclass(frozen=True)
class Wells:
    """
    In each coordinate two wells, pre-tanh: a mixture of two Gaussians of one width, and nothing that ties the coordinates.

    :param dimension: how many coordinates
    :param distance: of the wells from 0
    :param std: of each well
    :param share: probability of the well at ``+distance``
    :param blur: standard deviation of the noise that the flow's draws have too much
    :param base_std: of the Gaussian that the flow starts at, whose mean is 0
    """

    dimension: int
    distance: float = 0.8
    std: float = 0.2
    share: float = 0.7
    blur: float = 0.2
    base_std: float = 0.5

    def log_densities(self, u: th.Tensor, std: float) -> th.Tensor:
        """
        :param u: coordinates, any shape
        :param std: of each well
        :return: log-density of each coordinate alone, the same shape
        """
        return self._joint(u, self.distance, std).logsumexp(-1)

    def energy(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: ``(B, N, d)`` in the box
        :return: ``(B, N)``: what a sampler in the box must be given for its draws to be the wells pre-tanh
        """
        u = th.atanh(actions)
        return (th.log1p(-actions.square()) - self.log_densities(u, self.std)).sum(-1)

    def velocity(self, x: th.Tensor, time: th.Tensor) -> th.Tensor:
        """
        ``E[x_1 - x_0 | x_t = x]`` along straight lines from the base to the blurred wells (Lipman et al. 2023, section 2),
        whose flow takes the one to the other exactly.

        :param x: ``(B, N, d)``
        :param time: ``(B, N)``
        :return: ``(B, N, d)``
        """
        t = time.unsqueeze(-1)
        variance = self.std**2 + self.blur**2
        of_start, at_t = (1.0 - t) * self.base_std**2, ((1.0 - t) * self.base_std).square() + t.square() * variance
        weights = self._joint(x, t * self.distance, at_t.sqrt()).softmax(-1)
        sign = 2.0 * weights[..., 0] - 1.0  # the mean of the well's side
        slope = (t * variance - of_start) / at_t
        return self.distance * sign + slope * (x - t * self.distance * sign)

    def exact_draws(self, n: int, std: float, generator: th.Generator) -> th.Tensor:
        """
        :param n: how many
        :param std: of each well
        :param generator: source of the draws
        :return: ``(n, d)``
        """
        shape = (n, self.dimension)
        sides = 2.0 * (th.rand(shape, generator=generator) < self.share).double() - 1.0
        return self.distance * sides + std * th.randn(shape, generator=generator, dtype=th.float64)

    def _joint(self, x: th.Tensor, distance: Any, std: Any) -> th.Tensor:
        """``(..., 2)``: log of share and density of each well."""
        std = th.as_tensor(std, dtype=x.dtype)
        log_shares = (math.log(self.share), math.log1p(-self.share))
        wells = [
            log_share - 0.5 * ((x - side * distance) / std).square() - std.log() - 0.5 * math.log(2.0 * math.pi)
            for log_share, side in zip(log_shares, (1.0, -1.0), strict=True)
        ]
        return th.stack(wells, dim=-1)


class Truth:
    """
    Numbers of a product of wells by quadrature, and how far draws are from them.

    :param wells: the density
    """

    def __init__(self, wells: Wells):
        self.wells = wells
        fine = 50 * N_BINS
        points = (th.arange(fine, dtype=th.float64) + 0.5) / fine * 2.0 * SPAN - SPAN
        log_density = wells.log_densities(points, wells.std)
        mass = log_density.exp() * (2.0 * SPAN / fine)
        self.cells = mass.reshape(N_BINS, -1).sum(1)
        self.share = float(mass[points > 0.0].sum())
        self.energy = -float((mass * log_density).sum())
        corners = th.cartesian_prod(*[th.tensor([1.0 - self.share, self.share], dtype=th.float64)] * wells.dimension)
        self.modes = corners.reshape(-1, wells.dimension).prod(1)

    def errors(self, draws: th.Tensor) -> dict[str, float]:
        """
        :param draws: ``(n, d)``, pre-tanh
        :return: total variation of one coordinate, in the mean over them, and of the ``2^d`` modes; the share of the heavier
            well, and the energy for each coordinate
        """
        n, dimension = draws.shape
        index = ((draws + SPAN) / (2.0 * SPAN) * N_BINS).long().clamp(0, N_BINS - 1)
        counts = th.stack([th.bincount(column, minlength=N_BINS) for column in index.T]) / n
        corner = ((draws > 0.0).long() * 2 ** th.arange(dimension - 1, -1, -1)).sum(1)
        modes = th.bincount(corner, minlength=2**dimension) / n
        return dict(
            coordinate=float(0.5 * (counts - self.cells).abs().sum(1).mean()),
            modes=float(0.5 * (modes - self.modes).abs().sum()),
            share=float((draws > 0.0).double().mean()),
            energy=-float(self.wells.log_densities(draws, self.wells.std).mean()),
        )


FIVE: dict[str, Any] = dict(refiner=["flow", "mala"], refiner_steps=[None, 5])
CONSTANT: dict[str, Any] = dict(refiner_kwargs=[None, dict(step_size=0.3)])
SETTINGS: Mapping[str, dict[str, Any]] = {
    "mala, 1 particle": dict(refiner="mala", n_particles=1, initial_particles="base"),
    "mala": dict(refiner="mala"),
    "langevin": dict(refiner="langevin"),
    "flow": dict(refiner="flow"),
    "flow, langevin": dict(refiner=["flow", "langevin"]),
    "flow, mala": dict(refiner=["flow", "mala"]),
    "flow, mala, 5 steps": FIVE,
    "flow, mala, 5 steps of .3": FIVE | CONSTANT,
    "flow, mala, 5 steps of .3 in units of 1": FIVE | CONSTANT | dict(precondition=False),
    "flow, mala, 20 steps": FIVE | dict(refiner_steps=[None, 20]),
    "flow, hmc": dict(refiner=["flow", "hmc"]),
    "flow, svgd": dict(refiner=["flow", "svgd"]),
}
"""Refinements as ``policy_kwargs`` name them, with the default steps and step sizes but where it is said."""


def draws_of(refinement: Refinement, wells: Wells, n: int, counts: Counts, seed: int = 0) -> th.Tensor:
    """
    :param refinement: as a policy has it
    :param wells: what to draw from
    :param n: how many draws, each for an observation of its own
    :param counts: to which evaluations are added
    :param seed: of the noise
    :return: ``(n, d)``, pre-tanh
    """
    generator, found = th.Generator().manual_seed(seed), []
    energy, head = counts.energy(wells.energy), counts.head(Head(velocity=wells.velocity))
    for start in range(0, n, CHUNK):
        zeros = th.zeros((min(CHUNK, n - start), wells.dimension), dtype=th.float64)
        base = Gaussian(zeros, th.full_like(zeros, wells.base_std))
        found.append(refinement.sample(base, energy, head=head, generator=generator, is_finite=True))
    return th.cat(found)


def measured(wells: Wells, n: int) -> list[dict[str, Any]]:
    """
    :param wells: what to draw from
    :param n: how many draws
    :return: rows of the table
    """
    truth, generator = Truth(wells), th.Generator().manual_seed(1)
    blurred = math.hypot(wells.std, wells.blur)
    rows = [dict(refiner=EXACT, **truth.errors(wells.exact_draws(n, wells.std, generator)))]
    rows.append(dict(refiner="exact draws of the blurred wells", **truth.errors(wells.exact_draws(n, blurred, generator))))
    for name in SETTINGS:
        counts = Counts()
        draws = draws_of(_refinement(name), wells, n, counts)
        costs = {kind: getattr(counts, kind) / n for kind in ("energies", "gradients", "heads")}
        rows.append(dict(refiner=name, **truth.errors(draws), **costs))
    truths = dict(coordinate=0.0, modes=0.0, share=truth.share, energy=truth.energy)
    return [dict(refiner="quadrature", **truths), *rows]


def page(found: Mapping[int, list[dict[str, Any]]]) -> str:
    """
    :param found: rows by the number of coordinates
    :return: Markdown
    """
    heading = [
        "d",
        "refiner",
        "TV of a coordinate",
        "TV of the modes",
        "share",
        "energy",
        "energies",
        "gradients",
        "velocities",
    ]
    lines = [[str(dimension), *_cells(row)] for dimension, rows in found.items() for row in rows]
    return table(heading, lines)


def _cells(row: dict[str, Any]) -> list[str]:
    costs = [f"{row[kind]:g}" if kind in row else "" for kind in ("energies", "gradients", "heads")]
    return [row["refiner"], *(f"{row[name]:.3f}" for name in ("coordinate", "modes", "share", "energy")), *costs]


TARGETS = ("four modes, std .5", "checkerboard", "trained critic")
"""Of the gallery those that its learned flow is furthest from."""
LEARNED = ("mala", *(name for name in SETTINGS if name.startswith("flow") and "hmc" not in name and "svgd" not in name))


def learned(n: int, n_updates: int) -> str:
    """
    Total variation of the gallery's targets from draws of a flow that has learned them, and of what follows it.

    :param n: how many draws
    :param n_updates: of the flow
    :return: Markdown
    """
    found: dict[str, list[str]] = {name: [] for name in (EXACT, *LEARNED)}
    for target in TARGETS:
        energy = targets()[target]
        base = fitted_base(energy)
        heads = {"velocity": fitted_head("velocity", energy, base, n_updates)}
        problem = Problem(energy, CellProbabilities(energy), base, heads)
        exact = problem.cells.exact_draws(n, th.Generator().manual_seed(1))
        draws = {name: gallery_draws_of(_refinement(name), problem, n, seed=2) for name in LEARNED}
        for name, drawn in {EXACT: exact, **draws}.items():
            found[name].append(f"{problem.cells.total_variation(drawn):.3f}")
    return table(["total variation", *TARGETS], [[name, *row] for name, row in found.items()])


TIMED = ("mala", "flow", "flow, langevin", "flow, mala", "flow, mala, 5 steps")


def costs(rounds: int) -> str:
    """
    Times of ``predict``, as the gallery takes them.

    :param rounds: of the timing
    :return: Markdown
    """
    settings = {"none": dict(refiner="none")} | {name: SETTINGS[name] for name in TIMED}
    times = relative_times({name: model_of(**arguments) for name, arguments in settings.items()}, rounds)
    lines = [[name, *(f"{times[name][batch]:.1f}" for batch in BATCHES)] for name in settings]
    return table(["time of a prediction", *(f"batch {batch}" for batch in BATCHES)], lines)


def _refinement(name: str) -> Refinement:
    return RefinementArguments(**SETTINGS[name]).make_refinement()


def main(argv: Sequence[str] | None = None) -> None:
    """
    :param argv: the command line's arguments
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sequences", description=__doc__.strip().splitlines()[0])
    numbers = {
        "draws": (20_000, "for each refinement"),
        "updates": (800, "of each learned flow"),
        "rounds": (20, "of the timing"),
    }
    for name, (default, what) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("results/sequences"), help="folder (default %(default)s)")
    args = parser.parse_args(argv)
    for name in numbers:
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    th.set_num_threads(1)
    known = page({dimension: measured(Wells(dimension), args.draws) for dimension in DIMENSIONS})
    text = "\n\n".join([known, learned(args.draws, args.updates), costs(args.rounds), environment()]) + "\n"
    write_text(args.output / "table.md", text)
    print(f"{text}\nWritten to {args.output}.")


if __name__ == "__main__":
    sys.exit(main())
