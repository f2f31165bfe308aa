"""Tables of the gallery in many dimensions (Markdown)."""

from collections.abc import Sequence
from typing import Any

from benchmarks.sampler_costs import BATCHES
from benchmarks.sampler_page import environment, table
from benchmarks.statistics import interquartile_mean

Row = dict[str, Any]
HEADINGS = {"share": "share", "spread": "spread"}
SECOND = {"wells": "share", "correlated Gaussian": "spread", "two modes": "share"}
"""What is looked at beside the energy: what the density is there to show."""


def middle(rows: Sequence[Row], measure: str, **where: Any) -> float:
    """
    :param rows: of all seeds
    :param measure: name of a figure
    :param where: what a row must be
    :return: the interquartile mean
    """
    return float(interquartile_mean(_of(rows, measure, **where)))


def values(rows: Sequence[Row], key: str) -> list[Any]:
    """
    :param rows: some
    :param key: name of an entry
    :return: what stands there, each once, in the order of the rows
    """
    return list(dict.fromkeys(row[key] for row in rows))


def accuracy_table(rows: Sequence[Row], target: str) -> str:
    """
    :param rows: of draws
    :param target: name of the density
    :return: share or spread and energy, by refiner and dimension
    """
    dimensions, second = values(rows, "dimension"), SECOND[target]
    exact = dict(spread=[1.0] * len(dimensions), energy=[0.0] * len(dimensions))
    exact["share"] = [middle(rows, "exact_share", target=target, dimension=dimension) for dimension in dimensions]
    lines = [["exact", *_numbers(exact[second]), *_numbers(exact["energy"])]]
    for refiner in values(rows, "refiner"):
        found = {
            measure: [middle(rows, measure, target=target, refiner=refiner, dimension=dimension) for dimension in dimensions]
            for measure in (second, "energy")
        }
        lines.append([refiner, *_numbers(found[second]), *_numbers(found["energy"], signed=True)])
    return table([target, *_heads(dimensions, HEADINGS[second], "energy")], lines)


def cost_table(draws: Sequence[Row], entropies: Sequence[Row], prices: Sequence[Row]) -> str:
    """
    :param draws: rows of all seeds
    :param entropies: rows of all seeds
    :param prices: of predictions
    :return: evaluations for one state, in the mean over densities, and relative times of refiners
    """
    dimensions, lines = values(draws, "dimension"), []
    for kind, rows in (("refiner", draws), ("estimator", entropies)):
        for name in values(rows, kind):
            cells = []
            for dimension in dimensions:
                found = [_mean(rows, measure, dimension=dimension, **{kind: name}) for measure in ("energies", "gradients")]
                cells.append(" + ".join(f"{number:.0f}" for number in found))
            for batch in BATCHES:
                for dimension in dimensions:  # an estimator has none
                    ratios = _of(prices, f"batch {batch}", dimension=dimension, refiner=name) if kind == "refiner" else []
                    cells += [f"{ratio:.{1 if ratio < 100 else 0}f}" for ratio in ratios] or [""]
            lines.append([f"entropy by {name}" if kind == "estimator" else name, *cells])
    times = [f"time, batch {batch}" for batch in BATCHES]
    return table(["cost", *_heads(dimensions, "energies + gradients", *times)], lines)


def entropy_table(rows: Sequence[Row]) -> str:
    """
    :param rows: of estimates
    :return: their errors, by density, estimator and dimension
    """
    dimensions, lines = values(rows, "dimension"), []
    for target in values(rows, "target"):
        for estimator in values(rows, "estimator"):
            cells = []
            for measure in ("entropy", "log_normalizer", "deviation"):
                where = dict(target=target, estimator=estimator)
                found = [middle(rows, measure, dimension=dimension, **where) for dimension in dimensions]
                cells += _numbers(found, signed=measure != "deviation")
            lines.append([f"{target}: {estimator}", *cells])
    return table(["estimator", *_heads(dimensions, "entropy", "log Z", "deviation")], lines)


def tables(draws: Sequence[Row], entropies: Sequence[Row], prices: Sequence[Row]) -> str:
    """
    :param draws: rows of all seeds
    :param entropies: rows of all seeds
    :param prices: of predictions
    :return: all tables, and what it was measured on
    """
    parts = [accuracy_table(draws, target) for target in values(draws, "target")]
    return "\n\n".join([*parts, cost_table(draws, entropies, prices), entropy_table(entropies), environment()]) + "\n"


def _of(rows: Sequence[Row], measure: str, **where: Any) -> list[float]:
    return [row[measure] for row in rows if all(row[key] == where[key] for key in where)]


def _mean(rows: Sequence[Row], measure: str, **where: Any) -> float:
    found = _of(rows, measure, **where)
    return sum(found) / len(found)


def _heads(dimensions: Sequence[int], *names: str) -> list[str]:
    """Each name with the first dimension, and the other dimensions alone."""
    return [f"{name if i == 0 else ''} d = {d}".strip() for name in names for i, d in enumerate(dimensions)]


def _numbers(found: Sequence[float], signed: bool = False) -> list[str]:
    return [f"{number:{'+' if signed else ''}.2f}" for number in found]
