"""A picture of worlds of goals: exact and learned shares of each goal as bars, and total variation over the training."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from benchmarks.mode_report import LOST, MODE, score_of
from benchmarks.plots import styles_of, thousands
from benchmarks.report import Group

matplotlib.use("Agg")

EXACT = "#111827"


def draw_shares(axes: Axes, world: str, group: Group, styles: Mapping[str, tuple[str, str]]) -> None:
    """
    :param axes: where to draw
    :param world: its name, the title
    :param group: runs by variant; bars are means over their seeds, dots the seeds
    :param styles: colour and line style by variant
    """
    any_run = next(iter(group.values()))[0]
    exact, config = np.array(any_run.config["exact"]["shares"]), any_run.config
    width = 0.8 / (1 + len(group))
    places = np.arange(len(exact) + 1)
    axes.bar(places - 0.4 + width / 2, np.append(exact, max(1.0 - exact.sum(), 0.0)), width * 0.92, color=EXACT, label="exact")
    for i, (name, runs) in enumerate(group.items(), start=1):
        scores = [score_of(run) for run in runs]
        shares = np.array([np.append(score.shares, 1.0 - score.shares.sum()) for score in scores])
        x = places - 0.4 + width * (i + 0.5)
        axes.bar(x, shares.mean(axis=0), width * 0.92, color=styles[name][0], label=name)
        if len(runs) > 1:
            axes.plot(np.tile(x, len(runs)), shares.ravel(), ".", color=EXACT, markersize=3)
        lost = np.unique(np.concatenate([score.lost for score in scores])).astype(int)
        axes.plot(x[lost], np.full(len(lost), 0.02), "x", color="#b91c1c", markersize=4, markeredgewidth=1.2)
    axes.axhline(MODE, color="#9aa3ad", linewidth=0.8, linestyle=":")
    distances = np.linalg.norm(config["world"]["goals"], axis=1)
    axes.set_xticks(places, [*(f"goal {g}\n{d:.1f} away" for g, d in enumerate(distances)), "none"], fontsize=7)
    temperature = config["alpha"] / config["world"]["reward_scale"]
    scale = config["world"]["reward_scale"]
    axes.set_title(
        f"{world}: reward scale {scale:g}, α = {temperature:.2g} × scale", loc="left", fontsize=9, fontweight="bold"
    )
    axes.set_ylim(0.0, 1.0)
    axes.set_ylabel("share of episodes", fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def draw_total_variation(axes: Axes, group: Group, styles: Mapping[str, tuple[str, str]]) -> None:
    """
    :param axes: where to draw
    :param group: runs by variant, one line each
    :param styles: colour and line style by variant
    """
    for name, runs in group.items():
        colour, line = styles[name]
        for run in runs:
            axes.plot(run.column("timesteps"), run.column("total_variation"), line, color=colour, marker="o", markersize=2.5)
    axes.set_ylim(0.0, 1.0)
    axes.set_ylabel("total variation", fontsize=8)
    axes.set_xlabel("steps", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_formatter(FuncFormatter(thousands))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def draw_modes(groups: Mapping[str, Group], path: Path) -> None:
    """
    :param groups: world -> variant -> runs, whether finished or not
    :param path: the PNG to write
    """
    columns = min(len(groups), 2)
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(8.2 * columns, 2.7 * rows + 0.8), dpi=130, layout="constrained")
    panels = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[5, 3] * columns)
    styles = styles_of(list(dict.fromkeys(name for group in groups.values() for name in group)))
    for index, (world, group) in enumerate(groups.items()):
        row, column = divmod(index, columns)
        draw_shares(panels[row, 2 * column], world, group, styles)
        draw_total_variation(panels[row, 2 * column + 1], group, styles)
    for axes in panels.flat[2 * len(groups) :]:
        axes.set_visible(False)
    handles = {label: handle for axes in panels.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 6), frameon=False)
    figure.suptitle(
        f"Shares of goals at the last evaluation (dotted: {MODE}, a mode; ×: a mode below {LOST}), distance to the exact ones",
        fontsize=10,
        color="#444b54",
    )
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary)
    temporary.replace(path)
