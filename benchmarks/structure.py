"""
How the package is built, in numbers: what one update runs through, how much code there is and where, who inherits from whom.

``python -m benchmarks.structure`` prints a table; ``--docs`` also writes it into docs/architecture.md.
"""

import argparse
import ast
import io
import os
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import stable_baselines3
from stable_baselines3 import SAC

import sb3_energy
from benchmarks.files import write_text
from sb3_energy import PGAC, EnergySAC

PACKAGE = Path(sb3_energy.__file__).parent
SB3 = Path(stable_baselines3.__file__).parent
PAGE = PACKAGE.parent / "docs" / "architecture.md"
BEGIN, END = "<!-- structure: begin -->", "<!-- structure: end -->"

NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


@dataclass(frozen=True)
class Walk:
    """
    What one call executes of a package.

    :param files: in which a function was called
    :param functions: that were called, each counted once
    :param switches: how often a function was called that lies in another file than the one called before it
    """

    files: int
    functions: int
    switches: int


def walk(call: Callable[[], Any], package: Path) -> Walk:
    """
    :param call: what to look at
    :param package: whose files are counted
    :return: the counts, found by :func:`sys.setprofile`
    """
    called: list[tuple[str, int]] = []
    inside = str(package) + os.sep

    def note(frame: Any, event: str, arg: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(inside):
            called.append((code.co_filename, code.co_firstlineno))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    files = [file for file, _ in called]
    return Walk(len(set(files)), len(set(called)), sum(a != b for a, b in pairwise(files)))


def update_walk(algorithm: Any, package: Path, **arguments: Any) -> Walk:
    """
    :param algorithm: SAC or one of ours
    :param package: whose files are counted
    :param arguments: of the algorithm
    :return: what one ``train(gradient_steps=1)`` of a model that has learned for a while executes
    """
    model = algorithm("MlpPolicy", "Pendulum-v1", learning_starts=100, device="cpu", seed=0, **arguments)
    model.learn(130)
    return walk(lambda: model.train(gradient_steps=1, batch_size=64), package)


def code_lines(source: str) -> int:
    """
    :param source: of a module
    :return: lines with code: neither empty, nor only a comment, nor of a docstring
    """
    strings = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr) and is_text(node.value))
    docstrings = {line for node in strings for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    code = {line for token in tokens if token.type not in NO_CODE for line in range(token.start[0], token.end[0] + 1)}
    return len(code - docstrings)


def is_text(node: ast.expr) -> bool:
    """
    :param node: an expression
    :return: whether it is a string, as docstrings are
    """
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def sources() -> dict[Path, str]:
    """
    :return: the package's modules
    """
    return {path: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def folder_lines(found: dict[Path, str]) -> Counter[str]:
    """
    :param found: modules
    :return: code lines of each folder directly under the package; ``""`` is the package itself
    """
    lines: Counter[str] = Counter()
    for path, source in found.items():
        parts = path.relative_to(PACKAGE).parts
        lines[parts[0] if len(parts) > 1 else ""] += code_lines(source)
    return lines


def classes_of_ours(algorithm: type) -> int:
    """
    :param algorithm: a class
    :return: how many classes of its method resolution order are this package's
    """
    return sum(base.__module__.startswith("sb3_energy.") for base in algorithm.__mro__)


def import_circles(found: dict[Path, str]) -> list[list[str]]:
    """
    :param found: modules
    :return: groups of modules that import each other at their top level, directly or through others, or under
        ``TYPE_CHECKING``
    """
    names = {module_name(path): path for path in found}
    graph = {name: set(imported(found[path], names)) - {name} for name, path in names.items()}
    reached = {name: reachable(graph, name) for name in graph}
    groups = {tuple(sorted({name} | {other for other in seen if name in reached[other]})) for name, seen in reached.items()}
    return [list(group) for group in sorted(groups) if len(group) > 1]


def module_name(path: Path) -> str:
    """
    :param path: of a module of the package
    :return: its dotted name
    """
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, names: dict[str, Path]) -> Iterator[str]:
    """
    :param source: of a module
    :param names: of all modules
    :return: those of them that it imports outside of functions
    """
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom):
            # A name of a package may be one of its modules
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from full & set(names) or {node.module or ""} & set(names)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += ast.iter_child_nodes(node)


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """
    :param graph: modules and what they import
    :param start: one of them
    :return: all that it imports, directly or through others
    """
    seen: set[str] = set()
    pending = list(graph[start])
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            pending += graph[name]
    return seen


def step_loops(found: dict[Path, str]) -> list[str]:
    """
    :param found: modules
    :return: where a ``for`` runs over the steps of a refinement, ``range(... n_steps ...)``, as ``file:line``
    """
    loops = []
    for path, source in found.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.For) and re.search(r"range\(.*n_steps", ast.unparse(node.iter)):
                loops.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    return loops


def gaussian_log_densities(found: dict[Path, str]) -> list[str]:
    """
    :param found: modules
    :return: where the constant of a Gaussian's log-density, ``log 2π``, is written out, as ``file:line``
    """
    pattern = re.compile(r"log\(2(\.0)? \* (math|th|np|torch)\.pi\)")
    return [
        f"{path.relative_to(PACKAGE)}:{number}"
        for path, source in found.items()
        for number, line in enumerate(source.splitlines(), 1)
        if pattern.search(line)
    ]


def fast_predict_lines(found: dict[Path, str]) -> int:
    """
    :param found: modules
    :return: lines, docstrings and comments included, of what exists only for fast predictions
    """
    return sum(
        source.count("\n")
        for path, source in found.items()
        if "fast_predict" in str(path) or path.name.startswith(("numpy_", "array"))
    )


@dataclass(frozen=True)
class Row:
    """
    One line of the table.

    :param what: was measured
    :param value: as text
    :param reach: the largest number that was aimed at (``None``: nothing was)
    :param number: the number that is compared with it
    """

    what: str
    value: str
    reach: float | None = None
    number: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether the aim is reached."""
        return self.reach is None or self.number <= self.reach


def _walk_rows() -> list[Row]:
    def row(what: str, found: Walk, reach: int | None) -> Row:
        text = f"{found.files} files, {found.functions} functions, {found.switches} switches"
        return Row(what, text, reach, found.files)

    default = update_walk(EnergySAC, PACKAGE)
    return [
        row("an update of SB3's SAC (its own files)", update_walk(SAC, SB3), None),
        row("an update of `EnergySAC`, files of ours", default, 12),
        Row("the same, switches between files", str(default.switches), 90, default.switches),
        row("with `refine_target=True`", update_walk(EnergySAC, PACKAGE, refine_target=True), 20),
        row("an update of `PGAC` in which the potential learns", update_walk(PGAC, PACKAGE, policy_delay=1), 26),
    ]


def measure() -> list[Row]:
    """
    :return: the table
    """
    found = sources()
    lines = folder_lines(found)
    total = sum(lines.values())
    largest, n_largest = max(((name, n) for name, n in lines.items() if name), key=lambda item: item[1])

    def count(what: str, number: int, reach: int) -> Row:
        return Row(what, str(number), reach, number)

    return [
        *_walk_rows(),
        Row("largest folder", f"`{largest}/`, {n_largest / total:.1%} of the code", 0.2, n_largest / total),
        count("classes of ours that `EnergySAC` inherits from, itself included", classes_of_ours(EnergySAC), 2),
        count("the same of `PGAC`", classes_of_ours(PGAC), 3),
        count("lines of fast prediction, with docstrings", fast_predict_lines(found), 700),
        count("lines of code, without docstrings and comments", total, 7500),
        count("circles of imports", len(import_circles(found)), 0),
        count("loops over refinement steps", len(step_loops(found)), 3),
        count("places where a Gaussian's log-density is written out", len(gaussian_log_densities(found)), 1),
    ]


def table(rows: Sequence[Row]) -> str:
    """
    :param rows: what was measured
    :return: Markdown
    """
    head = ["| | measured | aim |", "|---|---|---|"]

    def aim(row: Row) -> str:
        if row.reach is None:
            return "–"
        return f"at most {row.reach:.0%}" if row.reach < 1.0 and row.reach else f"at most {row.reach:.0f}"

    return "\n".join([*head, *(f"| {row.what} | {row.value} | {aim(row)} |" for row in rows)]) + "\n"


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """
    :param argv: the command line, ``None`` for that of the process
    :return: what was measured
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.structure", description=__doc__.strip().splitlines()[0])
    parser.add_argument("--docs", action="store_true", help="also write the table into docs/architecture.md")
    parser.add_argument("--where", action="store_true", help="also list the loops, log-densities, circles and folders")
    args = parser.parse_args(argv)
    rows = measure()
    print(table(rows))
    if args.where:
        found = sources()
        for name, places in (
            ("loops over refinement steps", step_loops(found)),
            ("log-densities", gaussian_log_densities(found)),
            ("circles", import_circles(found)),
            ("folders", folder_lines(found).most_common()),
        ):
            print(name, *places, sep="\n  ")
    if args.docs:
        page = PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        _, _, after = rest.partition(END)
        write_text(PAGE, f"{before}{BEGIN}\n{table(rows)}{END}{after}")
    return rows


if __name__ == "__main__":
    main()
