"""
How many small errors tests would notice: an arithmetic or comparison operator is changed, and the tests of its file are run.

``python -m benchmarks.mutants --n 300 --seed 0`` samples that many changes of the losses, the refiners, the entropy estimators
and PGAC's updates, makes one at a time in a copy of the tree, and lists those that no test notices. It goes on where it was
stopped.

Written here because cosmic-ray and mutmut neither sample nor choose: of their changes most (``a | b``, ``a << b`` of tensors,
annotations) are errors of type that importing the file finds, which says nothing about tests. All changes here leave code that
runs, and each is run in a fork of a process that has imported torch, which saves half of the time.
"""

import argparse
import ast
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("sb3_energy", "tests", "benchmarks", "pyproject.toml", "setup.cfg", "_sb3_energy_autoload.py", "hyperparams")
CHANGES: dict[str, tuple[str, ...]] = {
    "+": ("-",),
    "-": ("+",),
    "*": ("/",),
    "/": ("*",),
    "//": ("/",),
    "%": ("*",),
    "**": ("*",),
    "<": ("<=", ">"),
    "<=": ("<", ">"),
    ">": (">=", "<"),
    ">=": (">", "<"),
    "==": ("!=",),
    "!=": ("==",),
    "is": ("is not",),
    "is not": ("is",),
    "in": ("not in",),
    "not in": ("in",),
}
OPERATORS: dict[type, str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
}
CHAINS = ["tests/contracts/test_refiner_contract.py", "tests/refiners/test_laws_gibbs.py", "tests/refiners/test_oracles.py"]
TESTS: dict[str, list[str]] = {
    # A file's own tests first: with -x most changes are noticed there
    "losses/actor_critic.py": ["tests/losses/test_actor_critic.py", "tests/fast_updates/test_sac_gradients.py"],
    "losses/categorical.py": ["tests/losses/test_categorical.py"],
    "losses/contrastive.py": ["tests/losses/test_contrastive.py"],
    "losses/descent.py": ["tests/losses/test_descent.py"],
    "losses/energy_matching.py": ["tests/losses/test_energy_matching.py"],
    "losses/flow.py": ["tests/losses/test_flow.py"],
    "losses/prefix.py": ["tests/losses/test_prefix.py"],
    "losses/score_matching.py": ["tests/losses/test_score_matching.py"],
    "refiners/annealed_gradient.py": ["tests/refiners/test_annealed_gradient.py", *CHAINS],
    "refiners/adaptive.py": ["tests/refiners/test_adaptive.py"],
    "refiners/autoregressive_derivative_free.py": ["tests/refiners/test_autoregressive_derivative_free.py", *CHAINS],
    "refiners/derivative_free.py": ["tests/refiners/test_derivative_free.py", *CHAINS],
    "refiners/*flow.py": ["tests/refiners/test_flow.py", *CHAINS],
    "refiners/jko.py": ["tests/refiners/test_jko.py", "tests/pgac/test_limits.py"],
    "refiners/loop.py": ["tests/refiners/test_refined_particles.py", *CHAINS],
    "refiners/m[ae]*.py": ["tests/refiners/test_metropolis.py", "tests/refiners/test_tuned_start.py", *CHAINS],
    "refiners/hmc.py": ["tests/refiners/test_metropolis.py", "tests/refiners/test_tuned_start.py", *CHAINS],
    "refiners/svgd.py": ["tests/refiners/test_svgd.py", *CHAINS, "tests/refinement/test_default_laws.py"],
    "refiners/mppi.py": ["tests/refiners/test_mppi.py", *CHAINS],
    "refiners/smc.py": ["tests/refiners/test_smc.py", *CHAINS],
    "refiners/bridge.py": ["tests/refiners/test_smc.py"],
    "refiners/sequence.py": ["tests/refiners/test_sequence.py", *CHAINS],
    "refiners/langevin.py": [*CHAINS, "tests/refinement/test_default_laws.py"],
    "refiners/*.py": CHAINS,
    "entropy/smc.py": ["tests/refiners/test_smc.py"],
    "entropy/divergence.py": ["tests/entropy/test_divergence.py"],
    "entropy/mixture.py": ["tests/entropy/test_mixture.py"],
    "entropy/path.py": ["tests/entropy/test_path.py"],
    "entropy/soft_value.py": ["tests/entropy/test_soft_value.py"],
    "entropy/trace.py": ["tests/entropy/test_trace.py"],
    "entropy/vne.py": ["tests/entropy/test_vne.py"],
    "entropy/*.py": ["tests/entropy", "tests/contracts/test_estimator_contract.py"],
    "pgac/behaviour_critic.py": ["tests/pgac/test_behaviour_critic.py"],
    "pgac/persistent_chains.py": ["tests/pgac/test_persistent_chains.py"],
    "pgac/potential_training.py": [
        "tests/pgac/test_potential_training.py",
        "tests/pgac/test_pgac_errors.py",
        "tests/contracts/test_unread_arguments.py",
    ],
    "pgac/q_scale.py": ["tests/pgac/test_q_scale.py"],
    "pgac/*.py": [
        "tests/pgac/test_positives_and_negatives.py",
        "tests/pgac/test_losses.py",
        "tests/pgac/test_potential_training.py",
        "tests/pgac/test_limits.py",
    ],
}
"""Patterns of files of the package, of which the first that fits counts, and the fast tests that cover them."""
NOT_UPDATES = ("pgac/pgac.py", "pgac/policies.py", "pgac/arguments.py", "pgac/numpy_potential.py", "*__init__.py")


@dataclass(frozen=True, order=True)
class Mutant:
    """
    One changed operator.

    :param path: of the file in the package, such as ``refiners/langevin.py``
    :param line: from 1
    :param column: from 0, of the operator
    :param old: the operator
    :param new: what it becomes
    :param text: of the line
    """

    path: str
    line: int
    column: int
    old: str
    new: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column} {self.old} -> {self.new}    {self.text}"

    def applied(self, source: str) -> str:
        """
        :param source: of the file
        :return: the source with the other operator
        """
        lines = source.splitlines(keepends=True)
        line = lines[self.line - 1]
        assert line[self.column :].startswith(self.old), self
        lines[self.line - 1] = line[: self.column] + self.new + line[self.column + len(self.old) :]
        return "".join(lines)


def mutants_of(path: str, source: str) -> list[Mutant]:
    """
    :param path: of the file in the package
    :param source: of the file
    :return: all changes of its operators, in the order of the file; annotations and texts of messages are left alone
    """
    lines, tokens, found = source.splitlines(), _operator_tokens(source), []
    for left, operator, right in _operations(ast.parse(source)):
        old = OPERATORS[type(operator)]
        begin, end = _place(lines, left.end_lineno, left.end_col_offset), _place(lines, right.lineno, right.col_offset)
        place = next(at for at, text in tokens if begin <= at < end and text == old.split()[0])
        if old in ("is not", "not in") and not lines[place[0] - 1][place[1] :].startswith(old):
            continue  # its two words are on two lines
        found += [Mutant(path, *place, old, new, lines[place[0] - 1].strip()) for new in CHANGES[old]]
    return sorted(found)


def _operations(node: ast.AST) -> Iterator[tuple[Any, Any, Any]]:
    """Left, operator and right of everything that is computed or compared."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        if not isinstance(node.left, ast.Constant) or not isinstance(node.left.value, str):  # "%d" % n
            yield node.left, node.op, node.right
    if isinstance(node, ast.Compare):
        yield from zip([node.left, *node.comparators], node.ops, node.comparators, strict=False)
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns") or isinstance(node, ast.JoinedStr):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _operations(child)


def _place(lines: Sequence[str], line: int, column: int) -> tuple[int, int]:
    """The syntax tree counts bytes, the tokens characters."""
    return line, len(lines[line - 1].encode()[:column].decode())


def _operator_tokens(source: str) -> list[tuple[tuple[int, int], str]]:
    kinds = (tokenize.OP, tokenize.NAME)
    return [
        (token.start, token.string) for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.type in kinds
    ]


def covering_tests(path: str) -> list[str]:
    """
    :param path: of a file in the package
    :return: the test files that cover it
    """
    return next(tests for pattern, tests in TESTS.items() if fnmatch(path, pattern))


def all_mutants(package: Path) -> list[Mutant]:
    """
    :param package: its folder
    :return: every change there is
    """
    found: list[Mutant] = []
    for folder in sorted({pattern.split("/")[0] for pattern in TESTS}):
        for file in sorted((package / folder).rglob("*.py")):
            path = file.relative_to(package).as_posix()
            if not any(fnmatch(path, pattern) for pattern in NOT_UPDATES):
                found += mutants_of(path, file.read_text(encoding="utf-8"))
    return found


def run_tests(tree: Path, tests: Sequence[str], limit: float) -> str:
    """
    Run tests in a fork, which imports the package from the tree anew.

    :param tree: the copy
    :param tests: files of it
    :param limit: seconds after which it is ended
    :return: ``"passed"``, ``"failed"`` or ``"too slow"``
    """
    child = os.fork()
    if child == 0:  # pragma: no cover
        os.setsid()
        os.nice(5)
        _run_here(tree, tests)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "passed" if os.waitstatus_to_exitcode(status) == 0 else "failed"
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "too slow"


def _run_here(tree: Path, tests: Sequence[str]) -> None:
    code = 1
    try:
        os.chdir(tree)
        log = os.open("mutants.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.path.insert(0, str(tree))
        sys.dont_write_bytecode = True  # two changes within a second would look like one to Python
        import pytest

        code = int(pytest.main(["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:randomly", *tests]))
    finally:
        os._exit(code)


def _import_what_tests_import() -> None:
    """All that is not of this package, once for all forks."""
    import gymnasium
    import hypothesis
    import pytest
    import sb3_contrib
    import scipy.optimize
    import scipy.stats
    import stable_baselines3
    import torch

    torch.set_num_threads(1)
    assert "sb3_energy" not in sys.modules, (gymnasium, hypothesis, pytest, sb3_contrib, scipy, stable_baselines3)


def copied_tree(folder: Path) -> Path:
    """
    :param folder: where to
    :return: a copy of what tests need
    """
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / name)
    return folder


def seconds_of(tree: Path, test: str) -> float | None:
    """
    :param tree: the copy, without any change
    :param test: a file of it
    :return: how long it takes, or ``None`` if it fails: then it says nothing about changes and is left out
    """
    start = time.monotonic()
    if run_tests(tree, [test], 3600.0) == "passed":
        return time.monotonic() - start
    print((tree / "mutants.log").read_text(encoding="utf-8")[-1500:])
    print(f"{test} fails without any change and is left out", flush=True)
    return None


def run_mutant(tree: Path, mutant: Mutant, tests: Sequence[str], limit: float) -> str:
    """
    :param tree: the copy, which is put back
    :param mutant: the change
    :param tests: that cover its file
    :param limit: seconds for its tests
    :return: what :func:`run_tests` returns
    """
    file = tree / "sb3_energy" / mutant.path
    source = file.read_text(encoding="utf-8")
    try:
        file.write_text(mutant.applied(source), encoding="utf-8")
        return run_tests(tree, tests, limit)
    finally:
        file.write_text(source, encoding="utf-8")


def read_results(path: Path) -> dict[Mutant, str]:
    """
    :param path: of an earlier run's results, or of none
    :return: what became of each change
    """
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {Mutant(**{name: value for name, value in row.items() if name != "result"}): row["result"] for row in rows}


def report(results: dict[Mutant, str]) -> str:
    """
    :param results: what became of each change
    :return: a table of folders, and the survivors
    """
    total = Counter(mutant.path.split("/")[0] for mutant in results)
    survivors = sorted(mutant for mutant, result in results.items() if result == "passed")
    lost = Counter(mutant.path.split("/")[0] for mutant in survivors)
    lines = ["| folder | detected | of |", "|---|---|---|"]
    lines += [f"| {folder} | {total[folder] - lost[folder]} | {total[folder]} |" for folder in sorted(total)]
    share = (len(results) - len(survivors)) / max(len(results), 1)
    lines += [f"| all | {len(results) - len(survivors)} ({share:.0%}) | {len(results)} |"]
    return "\n".join([*lines, "", "Survivors:", *map(str, survivors)])


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :param arguments: of the command line
    :return: 0, or 1 if some tests fail without any change
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=300, help="how many changes are sampled")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--only", default="*", help="pattern of files, such as 'losses/*'")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no new change is begun afterwards")
    parser.add_argument("--again", action="store_true", help="run those that survived again, with the tests of now")
    parser.add_argument("--output", type=Path, default=Path("results/mutants"))
    args = parser.parse_args(arguments)
    end = time.monotonic() + 60.0 * args.minutes
    population = [mutant for mutant in all_mutants(ROOT / "sb3_energy") if fnmatch(mutant.path, args.only)]
    sample = random.Random(args.seed).sample(population, min(args.n, len(population)))
    file = args.output / f"seed{args.seed}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    known = read_results(file)
    results = {mutant: known[mutant] for mutant in sample if mutant in known}
    if args.again:
        results = {mutant: result for mutant, result in results.items() if result != "passed"}
    print(f"seed {args.seed}: {len(sample)} of {len(population)} changes, {len(results)} known from {file}", flush=True)
    _import_what_tests_import()
    seconds: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = copied_tree(Path(folder))
        for mutant in sample:
            if mutant in results or time.monotonic() > end:
                continue
            for test in covering_tests(mutant.path):
                if test not in seconds:
                    seconds[test] = seconds_of(tree, test)
            tests = [test for test in covering_tests(mutant.path) if seconds[test] is not None]
            if not tests:
                continue
            results[mutant] = run_mutant(tree, mutant, tests, 30.0 + 4.0 * sum(seconds[test] or 0.0 for test in tests))
            with open(file, "a", encoding="utf-8") as output:
                output.write(json.dumps(asdict(mutant) | dict(result=results[mutant])) + "\n")
            print(f"{'SURVIVED' if results[mutant] == 'passed' else results[mutant]:9} {mutant}", flush=True)
    print(report(results))
    return int(None in seconds.values())


if __name__ == "__main__":
    sys.exit(main())
