"""
Claim: a good start is worth steps. Chains of one length from the actor, the box and a wide normal distribution.

``python -m benchmarks.good_starts`` runs chains of ``mala`` on densities with known answers in 6 and 17 dimensions, one file
for each seed, and writes a table (Markdown) and a picture. ``--docs`` puts both into the docs.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch as th

from benchmarks.files import write_text
from benchmarks.sampler_draws import fitted_base
from benchmarks.statistics import interquartile_mean
from benchmarks.tables import put_table
from benchmarks.wide_targets import Truth, WideTarget, wide_targets
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refiners import MetropolisAdjustedLangevin
from sb3_energy.schedules import Geometric

matplotlib.use("Agg")

DIMENSIONS, STEPS = (6, 17), (0, 1, 3, 10, 30, 100, 300)
STARTS = {"actor": "#0072B2", "box": "#D55E00", "wide normal": "#009E73"}
STEP_SIZES = Geometric(0.1, 0.004)
"""Pre-tanh, the same from all starts, and so many that some fit each density."""

WIDE = 2.0
"""Standard deviation of the wide normal distribution, pre-tanh."""

MEASURES = {
    "gap": "energy per dimension beyond the exact",
    "spread": "standard deviation / exact",
    "share": "share of the smaller mode",
}
Row = dict[str, Any]


def start_of(name: str, target: WideTarget) -> tuple[Gaussian, str]:
    """
    :param name: of the start
    :param target: the density, to which the actor's Gaussian is fitted
    :return: the base ``(1, d)`` and where initial particles are drawn from
    """
    if name == "actor":
        return fitted_base(target.energy, dimension=target.dimension), "base"
    wide = Gaussian(th.zeros(1, target.dimension), th.full((1, target.dimension), WIDE))
    return wide, "uniform" if name == "box" else "base"


def draws_of(start: tuple[Gaussian, str], target: WideTarget, n_steps: int, n_draws: int) -> th.Tensor:
    """
    :param start: of :func:`start_of`
    :param target: the density
    :param n_steps: of each chain
    :param n_draws: how many chains
    :return: ``(n, d)`` ends in the box
    """
    base, initial = start
    refinement = Refinement(MetropolisAdjustedLangevin(STEP_SIZES), n_steps, 1, initial, precondition=False)
    rows = Gaussian(*(part.expand(n_draws, -1) for part in base))
    return th.tanh(refinement.sample(rows, target.energy))


def measured(seed: int, n_draws: int) -> list[Row]:
    """
    :param seed: of the chains
    :param n_draws: how many of each
    :return: one row for each density, dimension, start and number of steps
    """
    rows: list[Row] = []
    for dimension in DIMENSIONS:
        for name, target in wide_targets(dimension).items():
            truth = Truth(target)
            for start in STARTS:
                begin = start_of(start, target)
                for n_steps in STEPS:
                    th.manual_seed(1000 * seed + n_steps)
                    draws = draws_of(begin, target, n_steps, n_draws)
                    gap = float(target.energy(draws.unsqueeze(0)).mean()) / dimension - truth.energy
                    spread = float(draws.std(dim=0).mean()) / truth.spread
                    share = float(target.side(draws).double().mean())
                    row = dict(target=name, dimension=dimension, start=start, steps=n_steps)
                    rows.append(row | dict(gap=gap, spread=spread, share=share, exact_share=truth.share))
    return rows


def middle(rows: Sequence[Row], measure: str, **where: Any) -> float:
    """
    :param rows: of all seeds
    :param measure: name of a figure
    :param where: what a row must be
    :return: the interquartile mean over seeds
    """
    return float(interquartile_mean([row[measure] for row in rows if all(row[key] == where[key] for key in where)]))


def steps_worth(rows: Sequence[Row], **where: Any) -> str:
    """
    :param rows: of all seeds
    :param where: density, dimension and start
    :return: after how many steps the energy is within a tenth of a nat per dimension of the exact one
    """
    reached = [n for n in STEPS if abs(middle(rows, "gap", steps=n, **where)) < 0.1]
    return str(reached[0]) if reached else f"> {STEPS[-1]}"


def report(rows: Sequence[Row]) -> str:
    """
    :param rows: of all seeds
    :return: the table
    """
    lines = [
        "| density | d | start | steps until the energy is right | share at first | after 300 | exact | spread after 300 |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for name in wide_targets(2):
        for dimension in DIMENSIONS:
            for start in STARTS:
                where = dict(target=name, dimension=dimension, start=start)
                shares = [middle(rows, "share", steps=n, **where) for n in (0, STEPS[-1])]
                exact, spread = middle(rows, "exact_share", **where), middle(rows, "spread", steps=STEPS[-1], **where)
                numbers = " | ".join(f"{number:.2f}" for number in (*shares, exact, spread))
                lines.append(f"| {name} | {dimension} | {start} | {steps_worth(rows, **where)} | {numbers} |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], path: Path) -> None:
    """
    :param rows: of all seeds
    :param path: of the picture
    """
    import matplotlib.pyplot as plt

    names = list(wide_targets(2))
    figure, axes = plt.subplots(len(DIMENSIONS), len(names), figsize=(4.2 * len(names), 3.2 * len(DIMENSIONS)), squeeze=False)
    for i, dimension in enumerate(DIMENSIONS):
        for j, name in enumerate(names):
            ax = axes[i, j]
            for start, colour in STARTS.items():
                where = dict(target=name, dimension=dimension, start=start)
                gaps = [middle(rows, "gap", steps=n, **where) for n in STEPS]
                ax.plot(np.array(STEPS) + 1, np.abs(gaps), "o-", color=colour, label=start, markersize=4)
            ax.set(xscale="log", yscale="log", title=f"{name}, d = {dimension}", xlabel="steps + 1")
            ax.axhline(0.1, color="#5b6470", linewidth=0.8, linestyle="--")
            ax.grid(color="#e3e6ea", linewidth=0.8)
        axes[i, 0].set_ylabel("|energy per dimension - exact|")
    axes[0, 0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2,3,4", help="by comma")
    parser.add_argument("--draws", type=int, default=2000, help="of each row and seed")
    parser.add_argument("--output", type=Path, default=Path("results/good_starts"))
    parser.add_argument("--docs", action="store_true", help="also write docs/good_starts.png and the table of docs/claims.md")
    args = parser.parse_args(argv)
    rows: list[Row] = []
    for seed in map(int, args.seeds.split(",")):
        path = args.output / f"seed{seed}.json"
        if not path.exists():
            write_text(path, json.dumps(measured(seed, args.draws)))
            print(f"finished: seed {seed}", flush=True)
        rows += json.loads(path.read_text())
    table = report(rows)
    write_text(args.output / "good_starts.md", table)
    draw(rows, args.output / "good_starts.png")
    if args.docs:
        put_table(Path("docs/claims.md"), "good starts", table)
        draw(rows, Path("docs/good_starts.png"))
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
