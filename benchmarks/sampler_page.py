"""The gallery's tables in Markdown and its page of pictures."""

import io
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch as th
from PIL import Image

from benchmarks.sampler_costs import BATCHES
from benchmarks.sampler_draws import Problem
from benchmarks.sampler_entropies import errors_of

EXACT = "exact draws"
N_POINTS = 400


def table(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """
    :param heading: of the columns
    :param lines: cells
    :return: a Markdown table
    """
    rows = [heading, ["---"] * len(heading), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def accuracy_table(rows: Sequence[dict[str, Any]]) -> str:
    """
    :param rows: of the gallery
    :return: total variation of each refiner on each target
    """
    names, found = _by_refiner(rows)
    lines = [[label, *(f"{line[name]['total_variation']:.3f}" for name in names)] for label, line in found.items()]
    return table(["total variation", *names], lines)


def cost_table(rows: Sequence[dict[str, Any]], times: Mapping[str, Mapping[int, float]], memory: Mapping[str, float]) -> str:
    """
    :param rows: of the gallery
    :param times: refiner -> batch -> CPU time in units of ``none``'s
    :param memory: refiner -> MB
    :return: what a draw costs, which does not depend on the target
    """
    names, found = _by_refiner(rows)
    lines = []
    for label, line in found.items():
        if label == EXACT:
            continue
        row = line[names[0]]
        counts = [f"{row[f'{kind}_per_state']:g}" for kind in ("energies", "gradients", "heads")]
        ratios = [f"{times[label][batch]:.1f}" if label in times else "" for batch in BATCHES]
        megabytes = f"{memory[label]:.1f}" if label in memory else ""
        lines.append([label, str(row["steps"]), str(row["particles"]), *counts, *ratios, megabytes])
    batches = [f"time, batch {batch}" for batch in BATCHES]
    return table(["cost", "steps", "particles", "energies", "gradients", "head", *batches, "memory, MB"], lines)


def entropy_table(rows: Sequence[dict[str, Any]]) -> str:
    """
    :param rows: of :func:`benchmarks.sampler_entropies.entropies`
    :return: the target's entropy, and the error of each estimator
    """
    truths = {row["target"]: row["target_entropy"] for row in rows}
    lines = [["target", "quadrature", *(f"{truth:.3f}" for truth in truths.values())]]
    for (refiner, estimator), errors in errors_of(rows).items():
        lines.append([refiner, estimator, *(f"{errors[name]:+.3f}" for name in truths)])
    return table(["entropy, nats", "estimator", *truths], lines)


def environment() -> str:
    """
    :return: on what it was measured
    """
    python = f"Python {platform.python_version()}, torch {version('torch')}, sb3-energy {version('sb3-energy')}"
    return f"{platform.machine()}, one thread, {python}."


def draw_page(
    samples: Mapping[str, Mapping[str, th.Tensor]], problems: Mapping[str, Problem], labels: Sequence[str], output: Path
) -> None:
    """
    :param samples: target -> refiner -> ``(n, 2)`` draws
    :param problems: by the target's name
    :param labels: of the refiners that are drawn, a line each
    :param output: the PNG to write
    """
    size = (1.3 * len(problems) + 1.6, 1.3 * len(labels) + 0.5)
    figure, axes = plt.subplots(len(labels), len(problems), figsize=size, layout="constrained", squeeze=False)
    for column, (target, problem) in zip(axes.T, problems.items(), strict=True):
        density = problem.cells.fine.T.numpy()
        for cell, label in zip(column, labels, strict=True):
            cell.imshow(density, origin="lower", extent=(-1, 1, -1, 1), cmap="Blues", vmin=0.0, vmax=1.6 * density.max())
            cell.scatter(*samples[target][label][:N_POINTS].T.numpy(), s=1.5, color="#b3202c", linewidths=0.0)
            cell.set(xlim=(-1, 1), ylim=(-1, 1), xticks=[], yticks=[])
        column[0].set_title(target.replace(", ", "\n") if "," in target else target.replace(" ", "\n"), fontsize=11)
    for cell, label in zip(axes[:, 0], labels, strict=True):
        text = label.replace(", ", "\n").replace("_", "\n")
        cell.set_ylabel(text, fontsize=11, rotation=0, ha="right", va="center", labelpad=8)
    with io.BytesIO() as file:
        figure.savefig(file, dpi=100)
        plt.close(figure)
        Image.open(file).convert("RGB").quantize(64).save(output, optimize=True)  # a third of the size


def _by_refiner(rows: Sequence[dict[str, Any]]) -> tuple[list[str], dict[str, dict[str, dict[str, Any]]]]:
    names = list(dict.fromkeys(row["target"] for row in rows))
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["refiner"], {})[row["target"]] = row
    return names, found
