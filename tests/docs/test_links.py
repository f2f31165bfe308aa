"""What a page points to exists: other pages and their headings, pictures, files of the repository, names of the package."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += [page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts]
TODAY = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""Pages about the package as it is: a changelog also names what is gone."""
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
FOLDERS = ("benchmarks/", "docs/", "examples/", "hyperparams/", "sb3_energy/", "tests/")


def prose_of(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def slugs_of(page: Path) -> set[str]:
    """The anchors that GitHub and MyST give to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path):
    broken = []
    for url in LINK.findall(re.sub(CODE, "", prose_of(page))):
        if url.startswith(("https://", "http://")):
            continue
        path, _, anchor = url.partition("#")
        target = (page.parent / path).resolve() if path else page
        generated = target.is_relative_to(ROOT / "docs" / "api")
        if not generated and (not target.exists() or (anchor and anchor not in slugs_of(target))):
            broken.append(url)
    assert broken == []


@pytest.mark.parametrize("page", TODAY, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(page: Path):
    words = [word for code in CODE.findall(prose_of(page)) for word in code.split()]
    paths = [
        word.partition("::")[0].rstrip(",") for word in words if word.startswith(FOLDERS) and not re.search(r"[<>*{]", word)
    ]
    built = ROOT / "docs" / "_build"  # is not there before `make docs`
    assert [path for path in paths if not ((ROOT / path).exists() or (ROOT / path).is_relative_to(built))] == []


@pytest.mark.parametrize("page", TODAY, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_names_of_the_package_exist(page: Path):
    found = re.findall(r"(?<![\w/`.])sb3_energy(?:\.\w+)+", " ".join(CODE.findall(prose_of(page))))
    assert [name for name in found if not exists(name)] == []


def exists(name: str) -> bool:
    """Whether a dotted name can be imported, as a module or as something in one."""
    module, _, attribute = name.rpartition(".")
    try:
        importlib.import_module(name)
        return True
    except ImportError:
        pass
    try:
        return hasattr(importlib.import_module(module), attribute)
    except ImportError:
        return bool(module) and "." in module and exists(module)
