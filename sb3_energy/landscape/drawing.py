"""Pictures of a landscape. matplotlib is no requirement of the package and imported where something is drawn."""

from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_energy.landscape.landscape import Landscape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRANSPORT, SAMPLING, START, END, BEST = "#0072b2", "#d55e00", "#ffffff", "#111111", "#f0c800"
"""Colours of the two stages, of starts, of ends and of the deterministic action; blue and vermilion differ for everybody."""

POTENTIAL, SHARE = "#009e73", "#8f4b9e"
CMAP, LEVELS = "viridis_r", 24  # dark where the energy is high, so that particles end in the light
N_ARROWS = 15


def draw_landscape(landscape: Landscape, title: str | None = None) -> "Figure":
    """
    The potential, the critic's share, both together and where they lead. Curves for one dimension of actions, maps for two.

    :param landscape: what to draw
    :param title: above all of it (``None``: none)
    :return: matplotlib's figure, 1200 pixels wide when saved as it is; it does not belong to pyplot
    :raises ImportError: if there is no matplotlib
    """
    make = figure_class()
    if len(landscape.dims) == 1:
        figure = make(figsize=(12.0, 9.0), dpi=100, layout="constrained")
        _draw_curves(figure, landscape)
    else:
        figure = make(figsize=(12.0, 11.2), dpi=100, layout="constrained")
        _draw_maps(figure, landscape)
    figure.legend(handles=_legend(landscape), loc="outside lower center", ncols=5, fontsize=11, frameon=False)
    lines = [] if title is None else [title]
    if landscape.actions.shape[-1] > 2:
        names = " and ".join(f"$a_{{{dim + 1}}}$" for dim in landscape.dims)
        lines.append(f"plane of {names} through the deterministic action, particles projected onto it")
    if lines:
        figure.suptitle("\n".join(lines), fontsize=15)
    return figure


def figure_class() -> "type[Figure]":
    """
    :return: matplotlib's class of figures
    :raises ImportError: if there is no matplotlib
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing a landscape needs matplotlib: pip install 'sb3-energy[plots]'") from error
    return Figure


def _draw_maps(figure: "Figure", landscape: Landscape) -> None:
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    share, name = _share(landscape)
    for ax, values, label, heading in (
        (axes[0, 0], landscape.potential, "$V - \\min V$", "Potential $V$"),
        (axes[0, 1], share, f"{name} above its minimum", f"Critic's share {name}, $Q$ from {_span(landscape.q_values)}"),
        (axes[1, 0], landscape.guided, "$U - \\min U$", "Together $U = V - \\lambda Q$"),
    ):
        _map(figure, ax, landscape, values - values.min(), label)
        ax.set_title(heading, fontsize=12)
    _arrows(axes[0, 0], landscape, landscape.potential_velocity, "$-\\nabla V$")
    _arrows(axes[1, 0], landscape, landscape.velocity, "$-\\nabla U$")
    _draw_paths(figure, axes[1, 1], landscape)
    for ax in axes.flat:
        ax.set(xlim=(-1.0, 1.0), ylim=(-1.0, 1.0), xticks=(-1, 0, 1), yticks=(-1, 0, 1), aspect="equal")
    for ax in axes[1]:
        ax.set_xlabel(_name(landscape.dims[0]), fontsize=12)
    for ax in axes[:, 0]:
        ax.set_ylabel(_name(landscape.dims[1]), fontsize=12)


def _map(figure: "Figure", ax: "Axes", landscape: Landscape, values: np.ndarray, label: str) -> None:
    highest = values.max()
    if highest > 0.0:
        image = ax.contourf(landscape.axis, landscape.axis, values.T, levels=np.linspace(0.0, highest, LEVELS + 1), cmap=CMAP)
        figure.colorbar(image, ax=ax, label=label, shrink=0.85, ticks=np.linspace(0.0, highest, 5), format="%.3g")
    else:
        ax.text(0.0, 0.0, "0 everywhere", ha="center", va="center", fontsize=12, color="#666666")
    ax.plot(*landscape.deterministic[list(landscape.dims)], "*", markersize=15, color=BEST, markeredgecolor="black", zorder=6)


def _arrows(ax: "Axes", landscape: Landscape, velocity: np.ndarray, name: str) -> None:
    index = np.linspace(0, len(landscape.axis) - 1, N_ARROWS + 2).round().astype(int)[1:-1]
    where, field = landscape.axis[index], velocity[np.ix_(index, index)]
    if not field.any():
        return
    longest = np.linalg.norm(field, axis=-1).max()
    scale = longest / (1.6 * 2.0 / (N_ARROWS + 1))  # the longest is a bit longer than from one arrow to the next
    ax.quiver(where, where, field[..., 0].T, field[..., 1].T, angles="xy", scale_units="xy", scale=scale, width=0.0032)
    ax.set_title(f"{ax.get_title()}, arrows: {name}, up to {longest:.2g}", fontsize=12)


def _draw_paths(figure: "Figure", ax: "Axes", landscape: Landscape) -> None:
    levels = np.linspace(0.0, 1.0, 13)
    # Half of the scale, so that paths and ends stand out where there are most of them
    image = ax.contourf(landscape.axis, landscape.axis, landscape.density.T, levels=levels, cmap="Greys", vmin=0.0, vmax=2.2)
    label = f"$\\exp(-U / \\epsilon)$ over its maximum, $\\epsilon$ = {landscape.temperature:g}"
    figure.colorbar(image, ax=ax, label=label, shrink=0.85, ticks=(0.0, 0.25, 0.5, 0.75, 1.0))
    x, y = landscape.dims
    for parts, noisy in zip(landscape.paths, landscape.noise, strict=True):
        colour, width, alpha = (SAMPLING, 0.7, 0.4) if noisy else (TRANSPORT, 1.3, 0.9)
        ax.plot(parts[..., x], parts[..., y], color=colour, linewidth=width, alpha=alpha, zorder=3 if noisy else 4)
    between = _between(landscape)
    ax.plot(between[:, x], between[:, y], "o", color=TRANSPORT, markersize=4, zorder=5)
    starts, ends = landscape.positions[0], landscape.positions[-1]
    ax.plot(starts[:, x], starts[:, y], "o", color=START, markeredgecolor=TRANSPORT, markersize=5, zorder=5, clip_on=False)
    ax.plot(ends[:, x], ends[:, y], "o", color=END, markersize=4.5, zorder=6, clip_on=False)
    best = landscape.deterministic
    ax.plot(best[x], best[y], "*", markersize=15, color=BEST, markeredgecolor="black", zorder=7)
    ax.set_title(f"{len(starts)} particles, {_steps(landscape)}", fontsize=12)


def _draw_curves(figure: "Figure", landscape: Landscape) -> None:
    axes = figure.subplots(2, 2)
    axis, best = landscape.axis, landscape.deterministic[landscape.dims[0]]
    share, name = _share(landscape)
    lines = (
        (landscape.potential, POTENTIAL, "$V$"),
        (share, SHARE, name),
        (landscape.guided, "black", "$U = V - \\lambda Q$"),
    )
    for values, colour, label in lines:
        axes[0, 0].plot(axis, values - values.min(), color=colour, linewidth=_width(colour), label=label)
    axes[0, 0].set(ylabel="energy above its minimum", title=f"Energies, $Q$ from {_span(landscape.q_values)}")
    fields = ((landscape.potential_velocity, POTENTIAL, "$-\\nabla V$"), (landscape.velocity, "black", "$-\\nabla U$"))
    for velocity, colour, label in fields:
        axes[0, 1].plot(axis, velocity[:, 0], color=colour, linewidth=_width(colour), label=label)
    _arrows_along(axes[0, 1], landscape)
    axes[0, 1].set(ylabel="velocity", title="Velocities, arrows: where $-\\nabla U$ leads")
    axes[1, 0].fill_between(
        axis, landscape.density / landscape.density.mean() / 2.0, color="#bbbbbb", label="$\\exp(-U/\\epsilon)$"
    )
    ends, starts = (landscape.positions[step][:, landscape.dims[0]] for step in (-1, 0))
    bins: Any = np.linspace(-1.0, 1.0, 11)
    for found, colour, label in ((starts, TRANSPORT, "starts"), (ends, END, "ends")):
        axes[1, 0].hist(found, bins=bins, density=True, histtype="step", color=colour, linewidth=1.5, label=label)
    axes[1, 0].set(ylabel="density", title=f"Where particles are, $\\epsilon$ = {landscape.temperature:g}")
    for ax in (axes[0, 0], axes[0, 1], axes[1, 0]):
        ax.axvline(best, color=BEST, linewidth=2.0, zorder=0)
        ax.set(xlim=(-1.0, 1.0), xticks=(-1.0, -0.5, 0.0, 0.5, 1.0), xlabel=_name(landscape.dims[0]))
        ax.legend(fontsize=10, framealpha=0.85)
    _draw_paths_in_time(axes[1, 1], landscape)


def _width(colour: str) -> float:
    return 4.5 if colour == POTENTIAL else 2.0  # without guidance U lies on V, which is to be seen all the same


def _arrows_along(ax: "Axes", landscape: Landscape) -> None:
    index = np.linspace(0, len(landscape.axis) - 1, N_ARROWS + 2).round().astype(int)[1:-1]
    speeds = landscape.velocity[index, 0]
    ax.axhline(0.0, color="#999999", linewidth=0.8, zorder=0)
    if speeds.any():
        scale = np.abs(speeds).max() / (0.9 * 2.0 / (N_ARROWS + 1))
        where = landscape.axis[index]
        # Along the line of 0: a particle goes right where the curve is above it
        ax.quiver(where, 0.0 * where, speeds, 0.0 * speeds, angles="xy", scale_units="xy", scale=scale, width=0.005, zorder=3)


def _draw_paths_in_time(ax: "Axes", landscape: Landscape) -> None:
    dim, n_steps = landscape.dims[0], len(landscape.paths)
    for step, (parts, noisy) in enumerate(zip(landscape.paths, landscape.noise, strict=True)):
        time = step + np.linspace(0.0, 1.0, len(parts))
        ax.plot(time, parts[..., dim], color=SAMPLING if noisy else TRANSPORT, linewidth=0.9, alpha=0.6)
    n_still = int((~landscape.noise).sum())
    for step, found, colour, edge in (
        (n_still, _between(landscape), TRANSPORT, TRANSPORT),
        (0, landscape.positions[0], START, TRANSPORT),
        (n_steps, landscape.positions[-1], END, END),
    ):
        times: Any = np.full(len(found), step)
        if len(found) == 0:  # matplotlib's layout breaks at a line of no points that may leave its axes
            continue
        ax.plot(times, found[:, dim], "o", color=colour, markeredgecolor=edge, markersize=5, clip_on=False, zorder=5)
    ax.axhline(landscape.deterministic[dim], color=BEST, linewidth=2.0, zorder=0)
    ax.set(xlim=(0, max(n_steps, 1)), ylim=(-1.0, 1.0), xlabel="step of the refinement", ylabel=_name(dim))
    ax.set_title(f"{landscape.positions.shape[1]} particles, {_steps(landscape)}")


def _legend(landscape: Landscape) -> list[Any]:
    from matplotlib.lines import Line2D

    dot: dict[str, Any] = dict(linestyle="none", marker="o", markersize=7)
    handles = [Line2D([], [], color=START, markeredgecolor=TRANSPORT, label="start", **dot)]
    if not landscape.noise.all():
        marker = "o" if len(_between(landscape)) > 0 else ""
        line = Line2D([], [], color=TRANSPORT, linewidth=2.0, marker=marker, markersize=5, label="transport, without noise")
        handles.append(line)
    if landscape.noise.any():
        handles.append(Line2D([], [], color=SAMPLING, linewidth=2.0, label="Langevin, with noise"))
    handles.append(Line2D([], [], color=END, label="end", **dot))
    star = dict(linestyle="none", marker="*", markersize=13) if len(landscape.dims) == 2 else dict(linewidth=2.0)
    handles.append(Line2D([], [], color=BEST, markeredgecolor="black", label="deterministic action", **star))
    return handles


def _share(landscape: Landscape) -> tuple[np.ndarray, str]:
    """The critic's share of the energy; where it has none, what it says all the same."""
    if np.ptp(landscape.guidance) > 1e-5 * np.abs(landscape.guided).max():  # more than rounding leaves of U / ε times ε
        return landscape.guidance, "$-\\lambda Q$"
    return -landscape.q_values, "$-Q$ (no guidance)"


def _steps(landscape: Landscape) -> str:
    n_noisy = int(landscape.noise.sum())
    return f"{len(landscape.noise) - n_noisy} steps without and {n_noisy} with noise"


def _between(landscape: Landscape) -> np.ndarray:
    """``(N, A)`` where the first step with noise finds particles, of none if there is only one stage."""
    if landscape.noise.all() or not landscape.noise.any():
        return landscape.positions[0][:0]
    return landscape.positions[int(landscape.noise.argmax())]


def _span(values: np.ndarray) -> str:
    return f"{values.min():.3g} to {values.max():.3g}"


def _name(dim: int) -> str:
    return f"$a_{{{dim + 1}}}$, scaled to [-1, 1]"
