"""Changed operators: where they are found, what is left alone, and what a test run says of them."""

import ast
import random
import subprocess
import sys

import pytest

from benchmarks import mutants
from benchmarks.mutants import ROOT, TESTS, Mutant, all_mutants, covering_tests, mutants_of

SOURCE = '''
def f(x: int | None, é="ε - δ") -> "int | None":
    """a + b"""
    if x is not None and 0 < x <= 3:  # < and <=
        raise ValueError(f"{x - 1} is too small")
    y = ("é", (x) * (
        2
    ) - -x)
    return [y ** 2, x not in y, "%d" % 3, {**x}, *y]
'''


def test_every_operator_is_found_and_nothing_else():
    found = mutants_of("f.py", SOURCE)
    assert {(m.old, m.new) for m in found} == {
        ("is not", "is"),
        ("<", "<="),
        ("<", ">"),
        ("<=", "<"),
        ("<=", ">"),
        ("*", "/"),
        ("-", "+"),
        ("**", "*"),
        ("not in", "in"),
    }
    assert len(found) == 9


def test_a_change_is_one_operator_and_still_code():
    before = ast.dump(ast.parse(SOURCE))
    for mutant in mutants_of("f.py", SOURCE):
        changed = mutant.applied(SOURCE)
        assert ast.dump(ast.parse(changed)) != before
        assert len(changed) - len(SOURCE) == len(mutant.new) - len(mutant.old)


def test_every_file_has_tests_that_exist_and_every_pattern_a_file():
    found = all_mutants(ROOT / "sb3_energy")
    assert len(found) > 300
    used = set()
    for path in {mutant.path for mutant in found}:
        used.add(next(pattern for pattern, tests in TESTS.items() if tests is covering_tests(path)))
        assert all((ROOT / test).exists() for test in covering_tests(path)), path


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A package of one file whose test notices one of two changes."""
    package = tmp_path / "root" / "sb3_energy" / "losses"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "sums.py").write_text("def add(a, b):\n    return a + b - 0\n")
    tests = tmp_path / "root" / "tests"
    tests.mkdir()
    (tests / "test_sums.py").write_text(
        "from sb3_energy.losses.sums import add\n\n\ndef test_add():\n    assert add(2, 3) == 5\n"
    )
    (tmp_path / "root" / "pyproject.toml").write_text("[tool.pytest.ini_options]\nmarkers = ['slow']\n")
    monkeypatch.setattr(mutants, "ROOT", tmp_path / "root")
    monkeypatch.setattr(mutants, "TESTS", {"losses/*.py": ["tests/test_sums.py"]})
    return tmp_path


RUN = """
import sys
from pathlib import Path
from benchmarks import mutants
mutants.ROOT, mutants.TESTS = Path({root!r}), {{"losses/*.py": ["tests/test_sums.py"]}}
mutants._import_what_tests_import = lambda: None
sys.exit(mutants.main(["--n", "5", "--output", {output!r}]))
"""


def test_survivors_are_reported_sources_are_left_alone_and_a_run_goes_on(tree):
    """In a process of its own: a fork imports what its parent has not."""
    script = RUN.format(root=str(tree / "root"), output=str(tree / "results"))
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "seed 0: 2 of 2 changes, 0 known" in said
    assert "| all | 1 (50%) | 2 |" in said
    assert "losses/sums.py:2:17 - -> +" in said.split("Survivors:")[1] and "a + b" in said
    assert "2:13 + -> -" not in said.split("Survivors:")[1]
    assert (tree / "root/sb3_energy/losses/sums.py").read_text() == "def add(a, b):\n    return a + b - 0\n"
    again = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "2 known" in again and again.split("| folder")[1] == said.split("| folder")[1]
    (tree / "root/tests/test_sums.py").write_text("def test_add():\n    assert False\n")
    (tree / "results/seed0.jsonl").unlink()
    failed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (
        failed.returncode == 1
        and "fails without any change and is left out" in failed.stdout
        and "| all | 0 (0%) | 0 |" in failed.stdout
    )


def test_a_sample_is_that_of_its_seed():
    population = [Mutant("a.py", line, 0, "+", "-", "") for line in range(100)]
    assert random.Random(3).sample(population, 5) == random.Random(3).sample(population, 5)
