"""
What EnergySAC costs beside Stable-Baselines3's SAC: updates, predictions, learning and memory.

``python -m benchmarks.speed`` measures in turn, in one process with one thread, and writes CSV, Markdown and a picture.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

# Read when the libraries are loaded. Baselines that are compiled by XLA get one thread, like all others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import torch as th

from benchmarks.files import write_text
from benchmarks.sampler_page import environment
from benchmarks.speed_cases import SECTIONS
from benchmarks.speed_measure import QUICK, Effort, measure
from benchmarks.speed_page import page
from benchmarks.speed_plot import draw
from benchmarks.speed_rows import read_rows, updated, write_rows
from sb3_energy.matmul import fast_matmul_gain, fast_matmul_is_exact

DOCS = Path(__file__).resolve().parents[1] / "docs"
HEADING = (
    "# Speed: what was measured\n\nHow, and what the tables mean, is on the [page about speed](speed.md).\n\n## Tables\n\n"
)
PICTURE = "![CPU time of an update against steps, particles and critics](speed.png)"


def _sections(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """
    :param argv: the command line's arguments
    :return: the settings
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__.strip().splitlines()[0])
    add = parser.add_argument
    add("--sections", type=_sections, default=list(SECTIONS), help=f"by comma (default {','.join(SECTIONS)})")
    add("--rounds", type=int, help=f"that everything is timed in (default {Effort.rounds}, with --quick {QUICK.rounds})")
    add("--quick", action="store_true", help="few and short rounds, small networks for the long training")
    add("--output", type=Path, help="folder (default results/speed, with --quick results/speed_quick)")
    add("--report-only", action="store_true", help="measure nothing: tables and picture of what is in the folder")
    add("--docs", action="store_true", help="also write docs/speed_tables.md and docs/speed.png")
    args = parser.parse_args(argv)
    unknown = [name for name in args.sections if name not in SECTIONS]
    if unknown or not args.sections:
        parser.error(f"--sections must be some of {','.join(SECTIONS)}, got {','.join(unknown)!r}")
    if args.rounds is not None and args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    if args.output is None:
        args.output = Path("results/speed_quick" if args.quick else "results/speed")
    return args


def machine() -> str:
    """
    :return: on what was measured
    """
    exact = "as exact" if fast_matmul_is_exact(1) else "less exact"
    gain = f"With the setting, products of 256 × 256 matrices are {exact} and {fast_matmul_gain(1):.1f} times as fast."
    return f"{environment()[:-1]}, {th.backends.cpu.get_cpu_capability()}. {gain}"


def report(folder: Path, to_docs: bool) -> None:
    """
    :param folder: with the rows and the line about the machine
    :param to_docs: whether the documentation is to show them
    :raises ValueError: if the folder holds no rows
    """
    rows = read_rows(folder / "speed.csv")
    if not rows:
        raise ValueError(f"--report-only needs {folder / 'speed.csv'}, which is not there or empty")
    text = page(rows, (folder / "machine.txt").read_text(encoding="utf-8").strip())
    write_text(folder / "speed.md", text)
    drawn = draw(rows, folder / "speed.png")
    if to_docs:
        if drawn:
            draw(rows, DOCS / "speed.png")
        write_text(DOCS / "speed_tables.md", HEADING + (f"{PICTURE}\n\n" if drawn else "") + text)
    print(f"\n{text}\nWritten to {folder}.")


def main(argv: Sequence[str] | None = None) -> int:
    """
    :param argv: the command line's arguments
    :return: exit code
    """
    args = parse(argv)
    effort = QUICK if args.quick else Effort()
    effort = effort if args.rounds is None else replace(effort, rounds=args.rounds)
    if not args.report_only:
        for section in SECTIONS:  # in this order, and each written when it is there: a kill keeps what was measured
            if section in args.sections:
                print(f"measuring: {section}", flush=True)
                rows = updated(read_rows(args.output / "speed.csv"), measure(section, effort), list(SECTIONS))
                write_rows(args.output / "speed.csv", rows)
        write_text(args.output / "machine.txt", machine() + "\n")
    try:
        report(args.output, args.docs)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
