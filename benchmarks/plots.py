"""Learning curves: one panel per environment, interquartile mean and bootstrap band per variant."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from benchmarks.report import REFERENCE, Group, Run, finished
from benchmarks.statistics import iqm_band

matplotlib.use("Agg")

# Okabe and Ito's colours, told apart by colour-blind readers; SAC is grey so that the others are read against it.
GREY = "#5b6470"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F")
STYLES = ("-", "--", ":", "-.")


def styles_of(names: list[str]) -> dict[str, tuple[str, str]]:
    others = [name for name in names if name != REFERENCE]
    styles = {name: (COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]) for i, name in enumerate(others)}
    return {REFERENCE: (GREY, "-"), **styles}


def thousands(value: float, position: int) -> str:
    return f"{value / 1000:g}k" if value else "0"


def _curves(runs: list[Run]) -> tuple[np.ndarray, np.ndarray]:
    """Common evaluation times of the runs, and their deterministic returns there."""
    common = sorted(set.intersection(*[set(run.column("timesteps")) for run in runs]))
    returns = [run.column("return_deterministic")[np.isin(run.column("timesteps"), common)] for run in runs]
    return np.array(common), np.array(returns)


def draw_panel(axes: Axes, env: str, group: Group, styles: Mapping[str, tuple[str, str]]) -> None:
    """
    :param axes: where to draw
    :param env: the environment's id, the title
    :param group: its runs; unfinished ones are left out
    :param styles: colour and line style by variant
    """
    for name, runs in finished(group).items():
        steps, returns = _curves(runs)
        middle, low, high = iqm_band(returns)
        colour, line = styles[name]
        width = 2.4 if name in (REFERENCE, "energy_sac") else 1.8
        axes.fill_between(steps, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(steps, middle, line, color=colour, linewidth=width, label=name, marker="o", markersize=3)
    axes.set_title(env.removeprefix("dm_control/").removesuffix("-v0"), loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("policy steps")
    axes.xaxis.set_major_formatter(FuncFormatter(thousands))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)


def learning_curves(groups: Mapping[str, Group], path: Path) -> None:
    """
    :param groups: what ``report.read_runs`` found
    :param path: the PNG to write
    """
    shown = {env: group for env, group in groups.items() if finished(group)}
    if not shown:
        return
    columns = 2 if len(shown) == 4 else min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4.6 * columns + 0.4, 3.5 * rows + 0.9), dpi=150, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    styles = styles_of(list(dict.fromkeys(name for group in shown.values() for name in finished(group))))
    for axes, (env, group) in zip(panels.flat, shown.items(), strict=False):
        draw_panel(axes, env, group, styles)
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel("return, deterministic policy")
    handles = {label: handle for axes in panels.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 5), frameon=False)
    counts = sorted({len(runs) for group in shown.values() for runs in finished(group).values()})
    seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    figure.suptitle(f"Interquartile mean over {seeds} seeds, 95 % bootstrap band", fontsize=10, color="#444b54")
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary)
    temporary.replace(path)
