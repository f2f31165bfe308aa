"""The table of the densities in Markdown and their page of pictures."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from benchmarks.density_data import DENSITIES
from benchmarks.sampler_page import table

Found = Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]
"""Density -> method -> what was measured."""

N_POINTS = 2000
DATA, OURS = "true samples", "EnergyMatching"


def markdown(found: Found) -> str:
    """
    :param found: the results
    :return: a Markdown table
    """
    heading = ["density", "method", "MMD² · 10⁴", "modes", "on support", "training, s", "sampling 4000, s", "gradient steps"]
    lines = []
    for name, row in found.items():
        for method, values in row.items():
            spread = float(values["mmd2_std"]) if "mmd2_std" in values else np.nan
            mmd = f"{1e4 * float(values['mmd2']):.1f}" + (f" ± {1e4 * spread:.1f}" if np.isfinite(spread) else "")
            costs = [f"{float(values[key]):.1f}" if key in values else "" for key in ("train_seconds", "sample_seconds")]
            steps = str(int(values["gradient_steps"])) if int(values.get("gradient_steps", 0)) else ""
            shares = [f"{float(values['modes']):.0%}", f"{float(values['on_support']):.1%}"]
            lines.append([DENSITIES[name].title, method, mmd, *shares, *costs, steps])
    return table(heading, lines) + "\n"


def draw_page(found: Found, grid: np.ndarray, output: Path) -> None:
    """
    Rows are densities; columns the data, samples of each method, and the potential that Energy Matching has learned.

    :param found: the results
    :param grid: of one axis of the potential
    :param output: the PNG to write
    """
    methods = list(next(iter(found.values())))
    n_columns = len(methods) + (OURS in methods)
    figure, axes = plt.subplots(len(found), n_columns, figsize=(2.3 * n_columns, 2.35 * len(found) + 0.2), squeeze=False)
    for line, (name, row) in zip(axes, found.items(), strict=True):
        for place, method in zip(line, methods, strict=False):
            colour = "#444444" if method == DATA else "#2e86ab" if method == OURS else "#a05195"
            # In any order: a mixture draws one component after the other
            samples = np.random.default_rng(0).permutation(row[method]["samples"])[:N_POINTS]
            place.scatter(*samples.T, s=1.2, color=colour, linewidths=0, alpha=0.7)
        if OURS in row:
            energies = row[OURS]["energies"]
            low = float(energies.min())
            levels = np.linspace(low, float(np.quantile(energies, 0.8)), 25)
            line[-1].contourf(grid, grid, energies, levels=levels, cmap="viridis", extend="max")
            line[-1].scatter(*row[OURS]["samples"][:300].T, s=1.5, color="white", linewidths=0, alpha=0.7)
        line[0].set_ylabel(DENSITIES[name].title, fontsize=11)
        for place in line:
            place.set(xlim=(grid[0], grid[-1]), ylim=(grid[0], grid[-1]), xticks=(), yticks=(), aspect="equal")
    titles = ["data" if method == DATA else method for method in methods]
    for place, title in zip(axes[0], [*titles, "V, and samples"], strict=False):
        place.set_title(title, fontsize=11)
    figure.tight_layout(pad=0.4)
    figure.savefig(output, dpi=120)
    plt.close(figure)
