"""Rows of the speed benchmark's table."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.files import write_text

NAN = math.nan


@dataclass(frozen=True)
class Row:
    """
    One case in one setting.

    :param section: that it belongs to
    :param case: its name
    :param setting: ``"stock"`` (SB3 as it comes), ``"highest"`` or ``"medium"`` (both sides at that precision), or what else
        tells the rows of a case apart
    :param series: the line of the plot it belongs to
    :param x: where on that line
    :param rounds: how many the figures are medians of
    :param ms: CPU time of one in ms
    :param speedup: SB3 SAC's time over the case's, median over rounds
    :param low: its lower quartile
    :param high: its upper quartile
    :param floor_ms: of the matrix products that it cannot do without
    :param mb: memory in 10⁶ bytes
    """

    section: str
    case: str
    setting: str
    series: str = ""
    x: float = NAN
    rounds: int = 1
    ms: float = NAN
    speedup: float = NAN
    low: float = NAN
    high: float = NAN
    floor_ms: float = NAN
    mb: float = NAN


TEXTS = ("section", "case", "setting", "series")
COLUMNS = tuple(column.name for column in fields(Row))


def _text(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """
    :param path: the CSV to replace
    :param rows: its content; what is not known is left empty
    """
    with io.StringIO() as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_text(value) for value in asdict(row).values()] for row in rows)
        write_text(path, file.getvalue())


def read_rows(path: Path) -> list[Row]:
    """
    :param path: a CSV that :func:`write_rows` wrote
    :return: its rows; none if there is no such file
    """
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [_parsed(line) for line in csv.DictReader(file)]


def _parsed(line: dict[str, str]) -> Row:
    texts = {name: line[name] for name in TEXTS}
    numbers = {name: float(line[name] or "nan") for name in COLUMNS if name not in TEXTS}
    return Row(**texts, **(numbers | dict(rounds=int(numbers["rounds"]))))


def updated(old: Sequence[Row], new: Sequence[Row], sections: Sequence[str]) -> list[Row]:
    """
    :param old: what was measured before
    :param new: what was measured now
    :param sections: all there are, in their order
    :return: the new rows, and the old ones of sections that were not measured now
    """
    measured = {row.section for row in new}
    rows = [row for row in old if row.section not in measured] + list(new)
    return [row for section in sections for row in rows if row.section == section]


def find(rows: Iterable[Row], section: str, case: str, setting: str) -> Row | None:
    """
    :param rows: to look in
    :param section: of the row
    :param case: of the row
    :param setting: of the row
    :return: the row, if there is one
    """
    return next((row for row in rows if (row.section, row.case, row.setting) == (section, case, setting)), None)
