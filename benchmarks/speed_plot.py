"""The picture of the speed benchmark: cost against steps, particles and critics, beside the arithmetic floor."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.plots import COLOURS, GREY
from benchmarks.speed_cases import BASELINE
from benchmarks.speed_page import fit_of, points_of
from benchmarks.speed_rows import Row, find

matplotlib.use("Agg")

PANELS = {"update": "Langevin steps K", "particles": "particles N", "critics": "critics"}
TITLES = {"update": "One chain of K steps", "particles": "N particles", "critics": "Several critics"}
MARKERS = ("o", "s", "^", "D")


def draw_line(axes: Axes, points: Sequence[Row], colour: str, marker: str, label: str, is_fast: bool) -> None:
    """
    :param axes: where to draw
    :param points: of one line
    :param colour: of all of it
    :param marker: of its points
    :param label: in the legend
    :param is_fast: whether it was measured with the fast matrix product; without, points are hollow
    """
    x, fit = _x(points), fit_of(points)
    ends = np.array([x.min(), x.max()])
    costs = [row.ms for row in points]
    axes.plot(ends, fit.intercept + fit.slope * ends, "-" if is_fast else "--", color=colour, linewidth=1.6, zorder=2)
    face = colour if is_fast else "white"
    axes.plot(x, costs, marker, color=colour, markerfacecolor=face, markersize=6, markeredgewidth=1.4, label=label, zorder=3)


def draw_floor(axes: Axes, points: Sequence[Row], colour: str, is_fast: bool) -> None:
    """
    :param axes: where to draw
    :param points: of one line
    :param colour: of its floor
    :param is_fast: whether it was measured with the fast matrix product; without, the line is thin
    """
    axes.plot(_x(points), [row.floor_ms for row in points], ":", color=colour, linewidth=1.7 if is_fast else 1.0, zorder=1)


def _x(points: Sequence[Row]) -> np.ndarray:
    return np.array([row.x for row in points])


def draw_panel(axes: Axes, rows: Sequence[Row], section: str) -> None:
    """
    :param axes: where to draw
    :param rows: of the table
    :param section: a key of :data:`PANELS`
    """
    lines = {key: points for key, points in points_of(rows).items() if key[0] == section}
    names = list(dict.fromkeys(series for _, series, _ in lines))
    for (_, series, setting), points in lines.items():
        i, is_fast = names.index(series), setting == "medium"
        if section == "update":
            label = f"{series}, fast matmul {'on' if is_fast else 'off'}"
        else:
            label = series
        label += f"  (R² {fit_of(points).r_squared:.3f})"
        colour = COLOURS[i % len(COLOURS)]
        draw_line(axes, points, colour, MARKERS[i % len(MARKERS)], label, is_fast)
        if section != "update":
            draw_floor(axes, points, colour, is_fast)
        elif i == 0:  # all have the same floor, but one for each matrix product
            draw_floor(axes, points, GREY, is_fast)
            end = (points[-1].x, points[-1].floor_ms)
            text = f"floor, {'on' if is_fast else 'off'}"
            axes.annotate(text, end, (6, -3), textcoords="offset points", fontsize=8.5, color=GREY)
            axes.set_xlim(right=points[-1].x * 1.22)
    if (stock := find(rows, section, BASELINE, "highest")) is not None:
        axes.axhline(stock.ms, color=GREY, linewidth=1.6, linestyle="-.", label="SB3 SAC, stock", zorder=1)
    axes.set_xlabel(PANELS[section])
    axes.set_xticks(sorted({row.x for points in lines.values() for row in points}))
    axes.set_ylim(0.0, 1.12 * axes.get_ylim()[1])  # room for the legend
    axes.set_title(TITLES[section], loc="left", fontsize=11, fontweight="bold")
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5, loc="upper left")


def draw(rows: Sequence[Row], path: Path) -> bool:
    """
    :param rows: of the table
    :param path: the PNG to write
    :return: whether there was something to draw
    """
    sections = [section for section in PANELS if any(key[0] == section for key in points_of(rows))]
    if not sections:
        return False
    figure = Figure(figsize=(4.8 * len(sections), 4.5), dpi=120, layout="constrained")
    for axes, section in zip(figure.subplots(1, len(sections), squeeze=False)[0], sections, strict=True):
        draw_panel(axes, rows, section)
    figure.axes[0].set_ylabel("CPU time of an update, ms")
    kinds = {
        "measured": dict(linestyle="", marker="o"),
        "least squares": dict(linestyle="-"),
        "arithmetic floor": dict(linestyle=":"),
    }
    handles = [Line2D([], [], color="#444b54", label=name, **style) for name, style in kinds.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary)
    temporary.replace(path)
    return True
