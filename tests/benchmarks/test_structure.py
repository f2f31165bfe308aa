"""The numbers of the package's structure: that they are counted right, and that they stay where they are wanted."""

import pytest

from benchmarks import structure

SOURCE = '''"""A docstring
of two lines."""

import math  # a comment


def area(radius):
    """Of a circle."""
    # a comment
    return (
        math.pi
        * radius**2
    )
'''


def test_code_lines_are_neither_empty_nor_comments_nor_docstrings():
    assert structure.code_lines(SOURCE) == 6


def test_a_walk_counts_files_functions_and_switches(tmp_path):
    names = {}
    for name, body in (("one", "def f(g):\n    g()\n    g()\n    h()\ndef h(): pass\n"), ("two", "def g(): pass\n")):
        path = tmp_path / f"{name}.py"
        path.write_text(body)
        exec(compile(body, str(path), "exec"), names)
    assert structure.walk(lambda: names["f"](names["g"]), tmp_path) == structure.Walk(files=2, functions=3, switches=2)
    assert structure.walk(lambda: None, tmp_path) == structure.Walk(0, 0, 0)


@pytest.fixture
def package(monkeypatch, tmp_path):
    root = tmp_path / "package"
    root.mkdir()
    monkeypatch.setattr(structure, "PACKAGE", root)

    def found(**sources):
        return {root / f"{name.replace('__', '/')}.py": source for name, source in sources.items()}

    return found


def test_circles_are_found_through_others_and_not_within_functions(package):
    circle = package(
        a="from package.b import x",
        b="import package.c",
        c="if TYPE_CHECKING:\n    from package import a",
        d="from package.a import y",
        e="def f():\n    import package.f",
        f="import package.e",
    )
    assert structure.import_circles(circle) == [["package.a", "package.b", "package.c"]]


def test_loops_and_log_densities_are_found_with_their_lines(package):
    code = package(
        a="for k in range(chains.n_steps - 1):\n    pass\nfor n in range(n):\n    pass",
        b="x = 1\ny = 0.5 * math.log(2.0 * math.pi)",
    )
    assert structure.step_loops(code) == ["a.py:1"]
    assert structure.gaussian_log_densities(code) == ["b.py:2"]


def test_lines_are_counted_by_folder(package):
    assert structure.folder_lines(package(a="x = 1", b__c="x = 1\ny = 2", b__d="z = 3")) == {"": 1, "b": 3}


def test_the_table_says_what_was_aimed_at():
    rows = [structure.Row("classes", "3", 2, 3), structure.Row("largest", "19 %", 0.2, 0.19), structure.Row("SAC", "10")]
    assert [row.holds for row in rows] == [False, True, True]
    assert structure.table(rows).splitlines()[2:] == [
        "| classes | 3 | at most 2 |",
        "| largest | 19 % | at most 20% |",
        "| SAC | 10 | – |",
    ]


@pytest.fixture(scope="module")
def measured():
    return {row.what: row.number for row in structure.measure()}


@pytest.mark.parametrize(
    ("what", "most"),
    [
        ("an update of `EnergySAC`, files of ours", 17),
        ("the same, switches between files", 123),
        ("with `refine_target=True`", 36),
        ("an update of `PGAC` in which the potential learns", 45),
        ("largest folder", 0.2),
        ("classes of ours that `EnergySAC` inherits from, itself included", 2),
        ("the same of `PGAC`", 3),
        ("lines of fast prediction, with docstrings", 1036),
        ("circles of imports", 0),
        ("loops over refinement steps", 3),
        ("places where a Gaussian's log-density is written out", 1),
    ],
)
def test_the_structure_does_not_grow(measured, what, most):
    """One who adds a file to an update, or a loop, says so here."""
    assert measured[what] <= most


def test_the_page_has_the_rows_that_are_measured(measured):
    page = structure.PAGE.read_text(encoding="utf-8")
    table = page.partition(structure.BEGIN)[2].partition(structure.END)[0]
    assert [line.split(" | ")[0][2:] for line in table.splitlines()[3:]] == list(measured)
