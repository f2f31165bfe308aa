"""
The gallery of refiners: how far from the truth, at what cost.

``python -m benchmarks.samplers`` writes tables (CSV and Markdown) and one page of pictures.
"""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch as th

from benchmarks.files import write_text
from benchmarks.sampler_costs import BATCHES, models, peak_memory, relative_times
from benchmarks.sampler_draws import Counts, Problem, draws_of, problems, refinements
from benchmarks.sampler_entropies import ENTROPY_COLUMNS, entropies, entropy_of
from benchmarks.sampler_page import (
    EXACT,
    N_POINTS,
    accuracy_table,
    cost_table,
    draw_page,
    entropy_table,
    environment,
)
from sb3_energy.refinement.refinement import Refinement
from sb3_energy.refiners import REFINERS

KINDS = ("energies", "gradients", "heads")
COLUMNS = (
    "target",
    "refiner",
    "steps",
    "particles",
    "total_variation",
    "entropy",
    *(f"{kind}_per_state" for kind in KINDS),
    *(f"time_batch_{batch}" for batch in BATCHES),
    "memory_mb",
)


def accuracy(
    found: Mapping[str, Problem], made: Mapping[str, Refinement], n_draws: int
) -> tuple[list[dict[str, Any]], dict[str, dict[str, th.Tensor]]]:
    """
    :param found: by the target's name
    :param made: refinements by their name
    :param n_draws: for each target and refinement
    :return: rows of the table, and some draws for the picture
    """
    rows, samples = [], {}
    for target, problem in found.items():
        cells = problem.cells
        exact = cells.exact_draws(n_draws, th.Generator().manual_seed(1))
        measured = dict(total_variation=cells.total_variation(exact), entropy=entropy_of(exact))
        rows.append(dict(target=target, refiner=EXACT, **measured))
        samples[target] = {EXACT: exact[:N_POINTS]}
        for label, refinement in made.items():
            counts = Counts()
            draws = draws_of(refinement, problem, n_draws, seed=2, counts=counts)
            samples[target][label] = draws[:N_POINTS]
            shape = dict(steps=refinement.n_steps, particles=refinement.n_particles)
            costs = {f"{kind}_per_state": getattr(counts, kind) / n_draws for kind in KINDS}
            measured = dict(total_variation=cells.total_variation(draws), entropy=entropy_of(draws))
            rows.append(dict(target=target, refiner=label, **shape, **measured, **costs))
        print(f"drawn: {target}", flush=True)
    return rows, samples


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """
    :param path: the CSV to write
    :param columns: in their order
    :param rows: of the table
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """
    :param argv: the command line's arguments
    :return: the settings
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.samplers", description=__doc__.strip().splitlines()[0])
    numbers = {
        "draws": (25_000, "for each target and refiner"),
        "more": (20, "factor of the steps of refiners that converge"),
        "updates": (800, "of each learned head and of the reverse drift, on each target"),
        "repetitions": (1000, "of the entropy's estimates"),
        "rounds": (20, "of the timing"),
    }
    for name, (default, what) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("results/samplers"), help="folder (default %(default)s)")
    args = parser.parse_args(argv)
    for name in numbers:
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """
    :param argv: the command line's arguments
    """
    args = parse(argv)
    th.set_num_threads(1)
    timed = models()
    times, memory = relative_times(timed, args.rounds), {name: peak_memory(model) for name, model in timed.items()}
    made, found = refinements(args.more), problems(args.updates)
    rows, samples = accuracy(found, made, args.draws)
    for row in rows:
        if (name := row["refiner"]) in times:
            row |= {f"time_batch_{batch}": times[name][batch] for batch in BATCHES} | dict(memory_mb=memory[name])
    drawn: dict[str, dict[str, float]] = {}
    for row in rows:
        drawn.setdefault(row["target"], {})[row["refiner"]] = row["entropy"]
    entropy_rows = entropies(found, made, drawn, args.repetitions, args.updates)
    parts = [accuracy_table(rows), cost_table(rows, times, memory), entropy_table(entropy_rows), environment()]
    text = "\n\n".join(parts) + "\n"
    args.output.mkdir(parents=True, exist_ok=True)
    write_rows(args.output / "table.csv", COLUMNS, rows)
    write_rows(args.output / "entropies.csv", ENTROPY_COLUMNS, entropy_rows)
    write_text(args.output / "table.md", text)
    draw_page(samples, found, [EXACT, *REFINERS], args.output / "gallery.png")
    print(f"\n{text}\nWritten to {args.output}.")


if __name__ == "__main__":
    sys.exit(main())
