"""
Every Python block and every shell command of README, CONTRIBUTING and docs runs. Blocks are found and evaluated by sybil, in
one namespace and one folder for each page; trainings are made short (short_runs.py, short_commands.py).
"""

import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest import SkipTest

import pytest
from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]
LANGUAGES = {"python", "bash", "yaml", "text", "{toctree}"}
LONG = {"docs/checkpoints.md": 6000}
"""Pages whose trainings cannot be as short as others', with the steps that they need: a checkpoint of step 6000 is loaded."""
FOLDERS = ("benchmarks", "docs", "examples", "hyperparams", "sb3_energy", "tests")
FILES = ("Makefile", "constraints.txt", "pyproject.toml", "setup.cfg", "setup.py", "README.md", "_sb3_energy_autoload.py")


def load(name: str) -> ModuleType:
    """Import a file of this folder: the tests have no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


short_runs, short_commands = load("short_runs"), load("short_commands")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def parse(page: Path) -> Document:
    parsers = [PythonCodeBlockParser(), CodeBlockParser("bash", lambda example: None), SkipParser()]
    return Sybil(parsers=parsers).parse(page)


def language_of(example: Example) -> str | None:
    """``python``, ``bash`` or, for the comments that skip blocks, ``None``."""
    return example.region.lexemes.get("arguments") if "source" in example.region.lexemes else None


def blocks_of(page: Path) -> dict[int, tuple[str, str]]:
    """Line, language and code of all fenced blocks, found without sybil."""
    text = page.read_text(encoding="utf-8")
    return {text.count("\n", 0, m.start("language")) + 1: (m["language"], m["code"]) for m in short_runs.FENCE.finditer(text)}


def shell_commands(page: Path) -> list[tuple[int, str]]:
    """Line and text of all shell commands of a page, in its order."""
    text = page.read_text(encoding="utf-8")
    found = [(line, command) for line, (language, code) in blocks_of(page).items() if language == "bash"
             for command in short_commands.commands_of(code)]  # fmt: skip
    found += [(text.count("\n", 0, at) + 1, command) for at, command in short_commands.inline_commands(text)]
    return sorted(found, key=lambda item: item[0])


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the checkout, so that a command may write where it likes."""
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "_build"))
    for file in FILES:
        shutil.copy(ROOT / file, tmp_path / file)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def has_python(page: Path) -> bool:
    return any(language == "python" for language, _ in blocks_of(page).values())


def python_pages() -> list:
    marks = {name: [pytest.mark.slow] for name in LONG}
    names = [name_of(page) for page in PAGES if has_python(page)]
    return [pytest.param(ROOT / name, id=name, marks=marks.get(name, [])) for name in names]


@pytest.mark.parametrize("page", python_pages())
def test_the_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    document = parse(page)
    module = ModuleType("documented_page")  # pickle and dataclasses look up the module of a class
    monkeypatch.setitem(sys.modules, module.__name__, module)
    document.namespace = module.__dict__
    undo = short_runs.shorten(steps=LONG.get(name_of(page), short_runs.STEPS))
    run = 0
    try:
        for example in document.examples():
            try:
                example.evaluate()
                run += language_of(example) == "python"
            except SkipTest as reason:
                assert str(reason)
    finally:
        undo()
    assert run


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_block_escapes(page: Path):
    blocks = blocks_of(page)
    assert {language for language, _ in blocks.values()} <= LANGUAGES
    evaluated = {example.line: language_of(example) for example in parse(page).examples() if language_of(example)}
    assert evaluated == {line: language for line, (language, _) in blocks.items() if language in ("python", "bash")}
    prose = short_runs.FENCE.sub("", page.read_text(encoding="utf-8"))
    assert "```" not in prose and "~~~" not in prose
    assert re.findall(r"^(?: {4,}|\t)(?:\$ ?)?(?:python|pip|make|import|from) .*", prose, re.MULTILINE) == []
    assert re.findall(r"<!--+ skip: (?!next (?:\"|if\(.*\")\w)", prose + page.read_text(encoding="utf-8")) == []


def pages_with(slow: bool) -> list[Path]:
    """Those that have a slow command, or one that is not."""
    return [page for page in PAGES if slow in {short_commands.rule_of(command).slow for _, command in shell_commands(page)}]


@pytest.mark.parametrize("page", pages_with(slow=False), ids=name_of)
def test_cheap_shell_commands_run(page: Path, workplace: Path):
    run_commands([command for _, command in shell_commands(page) if not short_commands.rule_of(command).slow], workplace)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with(slow=True), ids=name_of)
def test_shell_commands_run(page: Path, workplace: Path):
    run_commands([command for _, command in shell_commands(page)], workplace)


def run_commands(commands: list[str], workplace: Path) -> None:
    """In the order of the page: one may need what another has made."""
    make_what_commands_need(workplace, commands)
    environment = {**os.environ, "SDL_VIDEODRIVER": "dummy", "PYTHONPATH": os.pathsep.join([str(workplace), *sys.path])}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = configparser.ConfigParser()
    settings.read(workplace / "setup.cfg", encoding="utf-8")
    known = set(settings["options.extras_require"])
    for command in commands:
        if command.startswith("pip install"):
            assert short_commands.extras_of(command) <= known, command
            continue
        given = ["bash", "-c", short_commands.short(command)]
        done = subprocess.run(given, cwd=workplace, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"{command}\nrun as: {given[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def make_what_commands_need(workplace: Path, commands: list[str]) -> None:
    """Files that a page takes for the reader's own."""
    text = " ".join(commands)
    if "my_hyperparameters.yml" in text:
        shutil.copy(workplace / "hyperparams" / "energy_sac.yml", workplace / "my_hyperparameters.yml")
    if "my_model.zip" in text:
        source = "from sb3_energy import PGAC; PGAC('MlpPolicy', 'MultiGoal-v0').save('my_model')"
        subprocess.run([sys.executable, "-c", source], cwd=workplace, check=True)


@pytest.mark.parametrize("page", ["README.md", "docs/guide/install.md"])
def test_every_extra_is_in_the_tables(page: str):
    rows = " ".join(re.findall(r"^\| (`.*?) \|", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE))
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    assert set(settings["options.extras_require"]) <= set(re.findall(r"`(\w+)`", rows))


def test_a_command_without_a_rule_is_noticed():
    with pytest.raises(AssertionError, match="is in no rule"):
        short_commands.rule_of("python something.py")


def test_commands_are_found_and_made_short():
    block = (
        "# a comment\nmake help  # lists them\npython -m rl_zoo3.train -n 10000 \\\n    --save-freq 1000 -i a_6000_steps.zip\n"
    )
    long, train = short_commands.commands_of(block)
    assert long == "make help" and train == "python -m rl_zoo3.train -n 10000 --save-freq 1000 -i a_6000_steps.zip"
    assert short_commands.short(train).endswith("--save-freq 100 -i a_200_steps.zip -n 250 --num-threads 1")
    (_, inline), (_, table) = short_commands.inline_commands("`python x.py`, `numpy.x` or | `... -n 3` |")
    assert inline == "python x.py" and table == f"{short_commands.ABBREVIATED} -n 3"
    assert short_commands.extras_of('pip install -c constraints.txt -e ".[zoo,dmc]"') == {"zoo", "dmc"}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_tables_are_whole(page: Path):
    """A table is shown as one only with a header, a line of dashes and as many cells in each row."""
    lines = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE).splitlines()
    for i, line in enumerate(lines):
        if line.startswith("|") and not (i and lines[i - 1].startswith("|")):
            assert re.fullmatch(r"\|( *:?-+:? *\|)+", lines[i + 1]), f"{name_of(page)}: {line}"
        if line.startswith("|") and i and lines[i - 1].startswith("|"):
            assert cells(line) == cells(lines[i - 1]), f"{name_of(page)}: {line}"


def cells(row: str) -> int:
    """A bar in code divides cells on GitHub as well, unless it is written ``\\|``."""
    return len(re.findall(r"(?<!\\)\|", row))
