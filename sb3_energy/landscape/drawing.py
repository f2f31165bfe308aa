"""Figures of a landscape. matplotlib is an optional requirement, imported where something is drawn."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sb3_energy.landscape.landscape import Landscape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STILL, NOISY, START, END, BEST = "#0072b2", "#d55e00", "#ffffff", "#111111", "#f0c800"
"""Colours of steps without and with noise, of starts, ends and the deterministic action, safe for colour-blind readers."""

COLOURS = ("#009e73", "#8f4b9e", "#e69f00", "#56b4e9")
"""Colours of the energy's terms, as curves."""

GAUSSIAN, CRITIC, INFINITE = "#cc79a7", "#8f4b9e", "#d9d9d9"
CMAP, LEVELS = "viridis_r", 24  # dark where the energy is high, so that particles end in the light
N_ARROWS = 15
LONGEST_TITLE = 78  # characters of a line, TeX's commands included

SYMBOLS = {"V": "V", "U": "U", "E": "E", "-Q": "-Q", "-λQ": r"-\lambda Q"}
"""Mathematical symbols among the names of energies."""

TEMPERATURES = {"U": r"\epsilon", "E": r"\alpha"}
"""What the energy is divided by."""


class Surface(NamedTuple):
    """
    A function of the actions to be drawn as a map.

    :param heading: its title
    :param label: of its colour bar
    :param values: ``(*G)``
    :param velocity: ``(*G, 2)``, drawn as arrows (``None``: no arrows)
    :param is_density: whether values are relative to their maximum, in place of above their minimum
    """

    heading: str
    label: str
    values: np.ndarray
    velocity: np.ndarray | None = None
    is_density: bool = False


def draw_landscape(landscape: Landscape, title: str | None = None) -> "Figure":
    """
    Draw the energy, its terms, the density that follows from it, the Gaussian policy and the particles: as curves for
    one-dimensional actions, as maps otherwise.

    :param landscape: what to draw
    :param title: of the figure (``None``: none)
    :return: matplotlib's figure, 1200 pixels wide when saved as it is; it does not belong to pyplot
    :raises ImportError: if matplotlib is not installed
    """
    make = figure_class()
    if len(landscape.dims) == 1:
        figure = make(figsize=(12.0, 9.0), dpi=100, layout="constrained")
        _draw_curves(figure, landscape)
    else:
        surfaces = _surfaces(landscape)
        n_rows = (len(surfaces) + 1) // 2
        figure = make(figsize=(12.0, 0.4 + 5.4 * n_rows), dpi=100, layout="constrained")
        _draw_maps(figure, landscape, surfaces, n_rows)
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
    Import matplotlib when it is first needed.

    :return: matplotlib's class of figures
    :raises ImportError: if matplotlib is not installed
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing a landscape needs matplotlib: pip install 'sb3-energy[plots]'") from error
    return Figure


def _surfaces(landscape: Landscape) -> list[Surface]:
    """Energies, and densities as far as they fill the rows of two."""
    found = []
    for name, values in _shown_parts(landscape).items():
        velocity = landscape.part_velocities.get(name)
        found.append(Surface(_part_heading(landscape, name), _above_minimum(name), values, velocity))
    if not _has_critic(landscape):
        heading = f"Critic's $-Q$, for comparison, {_q_span(landscape)}"
        found.append(Surface(heading, _above_minimum("-Q"), -landscape.q_values))
    heading = f"Energy {_formula(landscape)}" + (f", {_q_span(landscape)}" if "-Q" in landscape.parts else "")
    found.append(Surface(heading, _above_minimum(landscape.name), landscape.energy, landscape.velocity))
    density, gaussian = landscape.density, landscape.gaussian / landscape.gaussian.max()
    heading, label = f"{_exponential(landscape)}, {_temperature(landscape)}", "density over its maximum"
    densities = [
        Surface(heading, label, density, is_density=True),
        Surface("Gaussian policy", label, gaussian, is_density=True),
    ]
    n_missing = 2 if len(found) == 1 else (len(found) + 1) % 2
    return found + densities[2 - n_missing :]


def _draw_maps(figure: "Figure", landscape: Landscape, surfaces: list[Surface], n_rows: int) -> None:
    axes = figure.subplots(n_rows, 2, sharex=True, sharey=True, squeeze=False)
    for ax, surface in zip(axes.flat, surfaces, strict=False):
        ax.set_title(surface.heading, fontsize=12)
        _map(figure, ax, landscape, surface)
        if surface.velocity is not None:
            _arrows(ax, landscape, surface.velocity)
    _draw_paths(figure, axes.flat[-1], landscape)
    for ax in axes.flat:
        ax.set(xlim=(-1.0, 1.0), ylim=(-1.0, 1.0), xticks=(-1, 0, 1), yticks=(-1, 0, 1), aspect="equal")
    for ax in axes[-1]:
        ax.set_xlabel(_axis_name(landscape.dims[0]), fontsize=12)
    for ax in axes[:, 0]:
        ax.set_ylabel(_axis_name(landscape.dims[1]), fontsize=12)


def _map(figure: "Figure", ax: "Axes", landscape: Landscape, surface: Surface) -> None:
    values = np.ma.masked_invalid(surface.values)
    if surface.is_density:
        _grey_density(figure, ax, landscape, values, surface.label)
    elif np.ma.ptp(values) > 0.0:
        values = values - values.min()
        levels, ticks = np.linspace(0.0, values.max(), LEVELS + 1), np.linspace(0.0, values.max(), 5)
        image = ax.contourf(landscape.axis, landscape.axis, values.T, levels=levels, cmap=CMAP)
        figure.colorbar(image, ax=ax, label=surface.label, shrink=0.85, ticks=ticks, format="%.3g")
    else:
        text = f"{values.min():.3g} everywhere"
        ax.text(0.0, 0.0, text, ha="center", va="center", fontsize=12, color="#666666")
    if np.ma.is_masked(values):
        ax.set_facecolor(INFINITE)
        _add_to_title(ax, "grey: infinite")
    ax.plot(*landscape.deterministic[list(landscape.dims)], "*", markersize=15, color=BEST, markeredgecolor="black", zorder=6)


def _grey_density(figure: "Figure", ax: "Axes", landscape: Landscape, values: np.ndarray, label: str) -> None:
    levels = np.linspace(0.0, 1.0, 13)
    # Half of the scale, so that paths and ends stand out where there are most of them
    image = ax.contourf(landscape.axis, landscape.axis, values.T, levels=levels, cmap="Greys", vmin=0.0, vmax=2.2)
    figure.colorbar(image, ax=ax, label=label, shrink=0.85, ticks=(0.0, 0.25, 0.5, 0.75, 1.0))


def _arrows(ax: "Axes", landscape: Landscape, velocity: np.ndarray) -> None:
    index = _arrow_index(landscape)
    where, field = landscape.axis[index], np.nan_to_num(velocity[np.ix_(index, index)], posinf=0.0, neginf=0.0)
    if not field.any():
        return
    longest = np.linalg.norm(field, axis=-1).max()
    scale = longest / (1.6 * 2.0 / (N_ARROWS + 1))  # the longest is a bit longer than from one arrow to the next
    ax.quiver(where, where, field[..., 0].T, field[..., 1].T, angles="xy", scale_units="xy", scale=scale, width=0.0032)
    _add_to_title(ax, f"arrows: $-\\nabla$, up to {longest:.2g}")


def _add_to_title(ax: "Axes", note: str) -> None:
    title = ax.get_title()
    ax.set_title(f"{title}, {note}" if len(title + note) < LONGEST_TITLE else f"{title},\n{note}", fontsize=12)


def _draw_paths(figure: "Figure", ax: "Axes", landscape: Landscape) -> None:
    _grey_density(
        figure, ax, landscape, landscape.density, f"{_exponential(landscape)} over its maximum, {_temperature(landscape)}"
    )
    x, y = landscape.dims
    if not landscape.resamples:
        for parts, noisy in zip(landscape.paths, landscape.noise, strict=True):
            colour, width, alpha = (NOISY, 0.7, 0.4) if noisy else (STILL, 1.3, 0.9)
            ax.plot(parts[..., x], parts[..., y], color=colour, linewidth=width, alpha=alpha, zorder=3 if noisy else 4)
    between = _between(landscape)
    ax.plot(between[:, x], between[:, y], "o", color=STILL, markersize=4, zorder=5)
    starts, ends = landscape.positions[0], landscape.positions[-1]
    if len(landscape.paths) > 0:
        ax.plot(starts[:, x], starts[:, y], "o", color=START, markeredgecolor=STILL, markersize=5, zorder=5, clip_on=False)
    ax.plot(ends[:, x], ends[:, y], "o", color=END, markersize=4.5, zorder=6, clip_on=False)
    best = landscape.deterministic
    ax.plot(best[x], best[y], "*", markersize=15, color=BEST, markeredgecolor="black", zorder=7)
    ax.set_title(_steps(landscape), fontsize=12)


def _draw_curves(figure: "Figure", landscape: Landscape) -> None:
    top: list[Any] = ["energy", "velocity"] if landscape.velocity is not None else ["energy", "energy"]
    bottom: list[Any] = ["density", "paths"] if len(landscape.paths) > 0 else ["density", "density"]
    axes = figure.subplot_mosaic([top, bottom])
    _draw_energies(axes["energy"], landscape)
    if "velocity" in axes:
        _draw_velocities(axes["velocity"], landscape)
    _draw_densities(axes["density"], landscape)
    for name in {"energy", "velocity", "density"} & set(axes):
        axes[name].axvline(landscape.deterministic[landscape.dims[0]], color=BEST, linewidth=2.0, zorder=0)
        axes[name].set(xlim=(-1.0, 1.0), xticks=(-1.0, -0.5, 0.0, 0.5, 1.0), xlabel=_axis_name(landscape.dims[0]))
        axes[name].legend(fontsize=10, framealpha=0.85)
    if "paths" in axes:
        _draw_paths_in_time(axes["paths"], landscape)


def _draw_energies(ax: "Axes", landscape: Landscape) -> None:
    energy = np.ma.masked_invalid(landscape.energy)
    for (name, values), colour in zip(_shown_parts(landscape).items(), _colours(landscape), strict=True):
        ax.plot(landscape.axis, values - values.min(), color=colour, linewidth=2.0, label=_tex(name))
    if not _has_critic(landscape):
        q, span = landscape.q_values, np.ma.ptp(energy)
        factor = span / np.ptp(q) if span > 0.0 and np.ptp(q) > 0.0 else 1.0
        label = "critic's $-Q$, for comparison" + ("" if factor == 1.0 else ", scaled")
        ax.plot(landscape.axis, factor * (q.max() - q), "--", color=CRITIC, linewidth=1.5, label=label)
    ax.plot(landscape.axis, energy - energy.min(), color="black", linewidth=2.0, label=_formula(landscape))
    ax.set(ylabel="energy above its minimum", title=f"Energies, {_q_span(landscape)}")


def _draw_velocities(ax: "Axes", landscape: Landscape) -> None:
    for name, colour in zip(_shown_parts(landscape), _colours(landscape), strict=True):
        if name in landscape.part_velocities:
            label = f"of {_tex(name)}"
            ax.plot(landscape.axis, landscape.part_velocities[name][:, 0], color=colour, linewidth=2.0, label=label)
    velocity: Any = landscape.velocity
    gradient = f"$-\\nabla {landscape.name}$"
    ax.plot(landscape.axis, velocity[:, 0], color="black", linewidth=2.0, label=gradient)
    ax.axhline(0.0, color="#999999", linewidth=0.8, zorder=0)
    ax.set(ylabel="velocity", title=f"Velocities, arrows: direction of {gradient}")
    index = _arrow_index(landscape)
    where, speeds = landscape.axis[index], np.nan_to_num(velocity[index, 0], posinf=0.0, neginf=0.0)
    if speeds.any():
        scale = np.abs(speeds).max() / (0.9 * 2.0 / (N_ARROWS + 1))
        # Along the line of 0: a particle goes right where the curve is above it
        ax.quiver(where, 0.0 * where, speeds, 0.0 * speeds, angles="xy", scale_units="xy", scale=scale, width=0.005, zorder=3)


def _draw_densities(ax: "Axes", landscape: Landscape) -> None:
    dim = landscape.dims[0]
    normalised = landscape.density / landscape.density.mean() / 2.0
    ax.fill_between(landscape.axis, normalised, color="#bbbbbb", label=_exponential(landscape))
    ax.plot(landscape.axis, landscape.gaussian, "--", color=GAUSSIAN, linewidth=1.5, label="Gaussian policy")
    bins: Any = np.linspace(-1.0, 1.0, 11)
    if len(landscape.paths) > 0:
        starts = landscape.positions[0][:, dim]
        ax.hist(starts, bins=bins, density=True, histtype="step", color=STILL, linewidth=1.5, label="starts")
    ends, label = landscape.positions[-1][:, dim], "ends" if len(landscape.paths) > 0 else "draws"
    ax.hist(ends, bins=bins, density=True, histtype="step", color=END, linewidth=1.5, label=label)
    ax.set(ylabel="density", title=f"Densities and particles, {_temperature(landscape)}")


def _draw_paths_in_time(ax: "Axes", landscape: Landscape) -> None:
    dim, n_steps = landscape.dims[0], len(landscape.paths)
    if not landscape.resamples:
        for step, (parts, noisy) in enumerate(zip(landscape.paths, landscape.noise, strict=True)):
            time = step + np.linspace(0.0, 1.0, len(parts))
            ax.plot(time, parts[..., dim], color=NOISY if noisy else STILL, linewidth=0.9, alpha=0.6)
    else:
        for step, found in enumerate(landscape.positions[1:-1], start=1):
            ax.plot(np.full(len(found), step), found[:, dim], "o", color=NOISY, markersize=3)
    n_still = int((~landscape.noise).sum())
    for step, found, colour, edge in (
        (n_still, _between(landscape), STILL, STILL),
        (0, landscape.positions[0], START, STILL),
        (n_steps, landscape.positions[-1], END, END),
    ):
        times: Any = np.full(len(found), step)
        if len(found) > 0:  # matplotlib's layout breaks at a line of no points that may leave its axes
            ax.plot(times, found[:, dim], "o", color=colour, markeredgecolor=edge, markersize=5, clip_on=False, zorder=5)
    ax.axhline(landscape.deterministic[dim], color=BEST, linewidth=2.0, zorder=0)
    ax.set(
        xlim=(0, n_steps), ylim=(-1.0, 1.0), xlabel="step of the refinement", ylabel=_axis_name(dim), title=_steps(landscape)
    )
    ax.locator_params("x", integer=True)


def _legend(landscape: Landscape) -> list[Any]:
    from matplotlib.lines import Line2D

    dot: dict[str, Any] = dict(linestyle="none", marker="o", markersize=7)
    moves, is_langevin = len(landscape.paths) > 0, set(landscape.refiner.split(", ")) <= {"langevin", "mala"}
    handles = [Line2D([], [], color=START, markeredgecolor=STILL, label="start", **dot)] if moves else []
    if moves and not landscape.resamples and not landscape.noise.all():
        marker = "o" if len(_between(landscape)) > 0 else ""
        label = f"{'transport' if is_langevin else landscape.refiner}, without noise"
        handles.append(Line2D([], [], color=STILL, linewidth=2.0, marker=marker, markersize=5, label=label))
    if moves and landscape.resamples and len(landscape.dims) == 1 and len(landscape.paths) > 1:
        handles.append(Line2D([], [], color=NOISY, label=f"after a step of {landscape.refiner}", **dot | dict(markersize=4)))
    if moves and not landscape.resamples and landscape.noise.any():
        label = f"{'Langevin' if is_langevin else landscape.refiner}, with noise"
        handles.append(Line2D([], [], color=NOISY, linewidth=2.0, label=label))
    if moves or len(landscape.dims) == 2:
        handles.append(Line2D([], [], color=END, label="end" if moves else "draw", **dot))
    star = dict(linestyle="none", marker="*", markersize=13) if len(landscape.dims) == 2 else dict(linewidth=2.0)
    handles.append(Line2D([], [], color=BEST, markeredgecolor="black", label="deterministic action", **star))
    return handles


def _shown_parts(landscape: Landscape) -> dict[str, np.ndarray]:
    """The energy's terms, without one that is all of it."""
    return {name: values for name, values in landscape.parts.items() if not _same(values, landscape.energy)}


def _same(values: np.ndarray, others: np.ndarray) -> bool:
    return np.allclose(values, others, rtol=1e-5, atol=1e-6 * np.abs(np.nan_to_num(others, posinf=0.0)).max())


def _has_critic(landscape: Landscape) -> bool:
    return any(name.lower().endswith("q") for name in landscape.parts)


def _part_heading(landscape: Landscape, name: str) -> str:
    headings = {
        "V": "Potential $V$",
        "-λQ": f"Critic's share $-\\lambda Q$, {_q_span(landscape)}",
    }
    return headings.get(name, f"Term {_tex(name)}")


def _formula(landscape: Landscape) -> str:
    """The energy's symbol and, if there are few terms and they add up to it, what it is the sum of."""
    parts = landscape.parts
    if not 0 < len(parts) <= 3 or not _same(sum(parts.values(), np.zeros(())), landscape.energy):
        return f"${landscape.name}$"
    return f"${landscape.name}$ = " + " + ".join(map(_tex, parts)).replace("+ $-", "$-$ $")


def _tex(name: str) -> str:
    return f"${SYMBOLS[name]}$" if name in SYMBOLS else name.replace("$", r"\$")


def _temperature(landscape: Landscape) -> str:
    return f"${TEMPERATURES[landscape.name]}$ = {landscape.temperature:.3g}"


def _exponential(landscape: Landscape) -> str:
    return f"$\\exp(-{landscape.name} / {TEMPERATURES[landscape.name]})$"


def _above_minimum(name: str) -> str:
    return f"{_tex(name)} above its minimum"


def _colours(landscape: Landscape) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(len(_shown_parts(landscape)))]


def _arrow_index(landscape: Landscape) -> np.ndarray:
    return np.linspace(0, len(landscape.axis) - 1, N_ARROWS + 2).round().astype(int)[1:-1]


def _steps(landscape: Landscape) -> str:
    n, n_noisy = landscape.positions.shape[1], int(landscape.noise.sum())
    if len(landscape.paths) == 0:
        return f"{n} draws of the Gaussian policy"
    counts = [
        f"{count} {word} noise" for count, word in ((len(landscape.noise) - n_noisy, "without"), (n_noisy, "with")) if count
    ]
    return f"{n} particles, steps of {landscape.refiner}: {' and '.join(counts)}"


def _between(landscape: Landscape) -> np.ndarray:
    """``(N, A)``, particles before the first step with noise, where both kinds of steps exist; else none of them."""
    if landscape.noise.all() or not landscape.noise.any():
        return landscape.positions[0][:0]
    return landscape.positions[int(landscape.noise.argmax())]


def _q_span(landscape: Landscape) -> str:
    return f"$Q$ from {landscape.q_values.min():.3g} to {landscape.q_values.max():.3g}"


def _axis_name(dim: int) -> str:
    return f"$a_{{{dim + 1}}}$, scaled to [-1, 1]"
