"""The tables of the speed benchmark in Markdown."""

import math
from collections.abc import Callable, Sequence

from benchmarks.sampler_page import table
from benchmarks.speed_cases import BARS, BASELINE, MEMORY_UPDATES, STEPS, Bar
from benchmarks.speed_memory import GROWTH
from benchmarks.speed_rows import Row, find
from benchmarks.speed_timing import Fit, linear_fit

SETTINGS = {"stock": "ours on, SB3 stock", "highest": 'both at "highest"', "medium": 'both at "medium"'}
NOTHING = "–"


def number(value: float) -> str:
    """
    :param value: any
    :return: it with three digits
    """
    if math.isnan(value):
        return NOTHING
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _spread(value: float, low: float, high: float) -> str:
    return f"{number(value)} [{number(low)}, {number(high)}]"


def faster(row: Row | None) -> str:
    """
    :param row: of the table
    :return: how many times as fast as SB3's SAC, with quartiles
    """
    return NOTHING if row is None else _spread(row.speedup, row.low, row.high)


def slower(row: Row | None) -> str:
    """
    :param row: of the table
    :return: its time in units of SB3's SAC's, with quartiles
    """
    return NOTHING if row is None else _spread(1.0 / row.speedup, 1.0 / row.high, 1.0 / row.low)


def of_section(rows: Sequence[Row], section: str) -> dict[str, dict[str, Row]]:
    """
    :param rows: of the table
    :param section: which
    :return: case -> setting -> row
    """
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.section == section:
            found.setdefault(row.case, {})[row.setting] = row
    return found


def bars_table(rows: Sequence[Row], bars: Sequence[Bar] = BARS) -> str:
    """
    :param rows: of the table
    :param bars: to hold them against
    :return: asked, measured, met or missed
    """
    lines = []
    for bar in bars:
        row = find(rows, bar.section, bar.case, bar.setting)
        asked = f"{'time / SAC' if bar.of_time else 'SAC / time'} {'≤' if bar.of_time else '≥'} {bar.asked:g}"
        verdict = "not measured" if row is None else ("met" if is_met(bar, row) else "missed")
        shown = slower(row) if bar.of_time else faster(row)
        setting = SETTINGS.get(bar.setting, bar.setting.replace(", stock", f", {SETTINGS['stock']}"))
        lines.append([bar.section.replace("_", " "), bar.case, setting, asked, shown, verdict])
    return table(["bar", "case", "setting", "asked", "measured", "verdict"], lines)


def is_met(bar: Bar, row: Row) -> bool:
    """
    :param bar: to hold it against
    :param row: what was measured
    :return: whether its median reaches the bar
    """
    return 1.0 / row.speedup <= bar.asked if bar.of_time else row.speedup >= bar.asked


def update_table(rows: Sequence[Row]) -> str:
    """
    :param rows: of the table
    :return: updates of all algorithms
    """
    lines = []
    for case, found in of_section(rows, "update").items():
        first = found["stock"]
        cells = [faster(found.get(setting)) for setting in SETTINGS]
        lines.append([case, number(first.ms), number(first.floor_ms), *cells])
    return table(["update", "CPU ms", "floor, ms", *(f"SAC / it, {name}" for name in SETTINGS.values())], lines)


def reference_table(rows: Sequence[Row]) -> str:
    """
    :param rows: of the table
    :return: the lean update beside the reference, without and with the fast matrix product
    """
    lines = []
    for k in STEPS:
        line = [str(k)]
        for precision in ("highest", "medium"):
            lean = find(rows, "update", f"K = {k}", precision)
            naive = find(rows, "update", f"K = {k}, reference", precision)
            if lean is not None and naive is not None:
                line += [number(naive.ms), number(lean.ms), number(naive.ms / lean.ms)]
        lines.append(line)
    heading = [f"{what}, {setting}" for setting in ("off", "on") for what in ("reference ms", "lean ms", "ratio")]
    return table(["K", *heading], lines)


def cost_table(rows: Sequence[Row], section: str) -> str:
    """
    :param rows: of the table
    :param section: of updates
    :return: what they cost, in units of stock SB3's SAC
    """
    lines = []
    for case, found in of_section(rows, section).items():
        row = found["stock"]
        name = f"{case} at medium" if case == BASELINE else case
        lines.append([name, number(row.ms), number(row.floor_ms), slower(row)])
    return table(["update", "CPU ms", "floor, ms", "time / SAC's, stock"], lines)


def points_of(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """
    :param rows: of the table
    :return: (section, series, setting) -> its points, for what is drawn against a number
    """
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.series and row.setting in ("highest", "medium"):
            found.setdefault((row.section, row.series, row.setting), []).append(row)
    return {key: sorted(points, key=_x) for key, points in found.items()}


def _x(row: Row) -> float:
    return row.x


def fit_of(points: Sequence[Row], cost: Callable[[Row], float] = lambda row: row.ms) -> Fit:
    """
    :param points: of one line
    :param cost: of a point
    :return: the straight line through them
    """
    return linear_fit([row.x for row in points], [cost(row) for row in points])


def fit_table(rows: Sequence[Row]) -> str:
    """
    :param rows: of the table
    :return: how well costs lie on straight lines
    """
    names = {"update": "K", "particles": "particles", "critics": "critics"}
    lines = []
    for (section, series, setting), points in points_of(rows).items():
        fit, floor = fit_of(points), fit_of(points, lambda row: row.floor_ms)
        figures = [number(fit.slope), number(floor.slope), number(fit.intercept), f"{fit.r_squared:.4f}"]
        lines.append([names[section], series, "on" if setting == "medium" else "off", *figures])
    heading = ["cost against", "of", "fast matmul", "ms for one more", "its floor, ms", "ms for none", "R²"]
    return table(heading, lines)


def settings_table(rows: Sequence[Row], section: str, name: str, cell: Callable[[Row | None], str]) -> str:
    """
    :param rows: of the table
    :param section: which
    :param name: of the first column
    :param cell: what is said of a row
    :return: a line for each case, a column for each setting
    """
    found = of_section(rows, section)
    settings = list(dict.fromkeys(setting for line in found.values() for setting in line))
    lines = [[case, *(cell(line.get(setting)) for setting in settings)] for case, line in found.items()]
    return table([name, *settings], lines)


def milliseconds(row: Row | None) -> str:
    """
    :param row: of the table
    :return: its CPU time in ms
    """
    return NOTHING if row is None else number(row.ms)


def end_to_end_table(rows: Sequence[Row]) -> str:
    """
    :param rows: of the table
    :return: a step of learning in each environment
    """
    lines = []
    for case, found in of_section(rows, "end_to_end").items():
        for setting, row in found.items():
            env_id, name = setting.split(", ")
            if name != "medium":  # which says the same milliseconds as "stock"
                label = f"{case} at {'highest' if name == 'highest' else 'medium'}" if case == BASELINE else case
                both = found.get(f"{env_id}, medium") if name == "stock" else None
                lines.append([env_id, label, number(row.ms), faster(row), faster(both)])
    heading = [f"SAC / it, {SETTINGS[name]}" for name in ("stock", "medium")]
    return table(["environment", "learning", "CPU ms of a step", *heading], sorted(lines, key=_environment))


def _environment(line: Sequence[str]) -> str:
    return line[0]


def memory_table(rows: Sequence[Row]) -> str:
    """
    :param rows: of the table
    :return: peak memory of each case
    """
    found = {case: line for case, line in of_section(rows, "memory").items() if case != GROWTH}
    first = next(iter(found.values()))["peak"]
    lines = [[case, f"{line['peak'].mb:.0f}", f"{line['peak'].mb - first.mb:.0f}"] for case, line in found.items()]
    return table(["training", "peak resident, MB", "beyond the imports, MB"], lines)


def growth_sentence(rows: Sequence[Row]) -> str:
    """
    :param rows: of the table
    :return: what a long training did to the memory
    """
    points = [find(rows, "memory", GROWTH, f"{n:,} updates") for n in MEMORY_UPDATES]
    early, late = (row.mb for row in points if row is not None)
    first, last = (f"{n:,}" for n in MEMORY_UPDATES)
    return f"Resident after {first} updates at K = 1: {early:.1f} MB; after {last}: {late:.1f} MB ({late - early:+.1f} MB)."


def page(rows: Sequence[Row], environment: str) -> str:
    """
    :param rows: of the table
    :param environment: on what they were measured
    :return: all tables of what was measured, in Markdown
    """
    measured = {row.section for row in rows}
    parts = [f"{environment} Medians over {_rounds(rows)} rounds, quartiles in brackets.", "### Bars", bars_table(rows)]
    if "update" in measured:
        parts += ["### Updates", update_table(rows), "### Lean and reference", reference_table(rows)]
    if "refiners" in measured:
        parts += ["### Refiners and options", cost_table(rows, "refiners")]
    if "pgac" in measured:
        parts += ["### PGAC", cost_table(rows, "pgac")]
    if measured & {"update", "particles", "critics"}:
        parts += ["### Straight lines", fit_table(rows)]
    for section in ("particles", "critics"):
        if section in measured:
            parts += [f"### Cost by {section}", cost_table(rows, section)]
    if "predict" in measured:
        parts += ["### Predictions", "Time in units of SB3 SAC's:", settings_table(rows, "predict", "predict", slower)]
        parts += ["CPU ms:", settings_table(rows, "predict", "predict", milliseconds)]
    if "end_to_end" in measured:
        parts += ["### End to end", end_to_end_table(rows)]
    if "memory" in measured:
        parts += ["### Memory", memory_table(rows), growth_sentence(rows)]
    return "\n\n".join(parts) + "\n"


def _rounds(rows: Sequence[Row]) -> str:
    counts = sorted({row.rounds for row in rows if row.section != "memory"}) or [1]
    return " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
