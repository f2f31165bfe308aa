"""The API reference has every public name, and the built pages need no network."""

import importlib
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

import sb3_energy
from sb3_energy import refiners

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(sb3_energy.__file__).parent


def load_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "_ext" / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


reference = load_reference()
UNITS = {unit for page in reference.PAGES.values() for unit in page.units}


def described() -> dict[str, object]:
    return {path: member for names in reference.contents().values() for path, member in names.items()}


def test_every_part_of_the_package_is_on_a_page_or_internal():
    parts = {found.name for found in pkgutil.iter_modules([str(PACKAGE)], "sb3_energy.")}
    placed = {part for part in parts if any(reference.is_in(unit, part) for unit in UNITS)}
    internal = {part for part in parts if part in reference.INTERNAL}
    assert parts - placed - internal == set(), "say in docs/_ext/reference.py on which page it is, or that it is internal"
    assert placed & internal == set()


@pytest.mark.parametrize("unit", sorted(reference.INTERNAL))
def test_what_is_internal_exists(unit: str):
    assert importlib.util.find_spec(unit) is not None


def test_no_name_is_described_twice():
    assert {n for n in Counter(id(member) for member in described().values()).values()} == {1}
    assert sum(map(len, reference.contents().values())) == len(described())


def test_the_public_names_of_the_package_are_described():
    public = {f"sb3_energy.{name}" for name in sb3_energy.__all__ if inspect.isclass(getattr(sb3_energy, name))}
    assert public and public <= set(described())


def registries() -> dict[str, dict]:
    """All dictionaries of the package whose keys are names and whose values are its classes or functions."""
    modules = [m for part in pkgutil.iter_modules([str(PACKAGE)], "sb3_energy.") if part.name != "sb3_energy.zoo"
               for m in reference.modules_of(part.name) if part.name not in reference.INTERNAL]  # fmt: skip
    return {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, dict) and value
        and all(isinstance(k, str) and inspect.isclass(v) and v.__module__.startswith("sb3_energy.") for k, v in value.items())
    }  # fmt: skip


def test_everything_in_a_registry_is_described():
    members = list(described().values())
    found = registries()
    assert {"sb3_energy.refiners.REFINERS", "sb3_energy.energies.ENERGIES"} <= set(found)
    missing = [f"{name}[{key!r}]" for name, items in found.items() for key, value in items.items() if value not in members]
    assert missing == []


def test_a_new_refiner_is_described(monkeypatch: pytest.MonkeyPatch):
    mine = type("Mine", (refiners.Langevin,), {"__module__": "sb3_energy.refiners.mine", "__doc__": "Moves nothing. At all."})
    monkeypatch.setattr(refiners, "Mine", mine, raising=False)
    monkeypatch.setattr(refiners, "__all__", [*refiners.__all__, "Mine"])
    monkeypatch.setitem(refiners.REFINERS, "mine", mine)
    text = reference.text_of(reference.PAGES["refiners"], reference.contents()["refiners"])
    assert ".. autoclass:: sb3_energy.refiners.Mine" in text and 'By name: ``refiner="mine"``' in text
    assert "     - Moves nothing.\n" in text


def test_a_name_that_is_gone_is_noticed():
    with pytest.raises(LookupError, match=r"sb3_energy\.pgac has no Nothing"):
        reference.names_of(reference.Page("", "", {"sb3_energy.pgac": ("Nothing",)}))


class Page(HTMLParser):
    """What a built page loads, where it links to, and which anchors it has."""

    def __init__(self, path: Path):
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.tags: Counter[str] = Counter()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags[tag] += 1
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag in ("script", "img", "iframe", "source") and "src" in values:
            self.loaded.append(values["src"])
        if tag == "link" and "href" in values:
            self.loaded.append(values["href"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])


ALONE = """
import socket, sys
def refuse(*args): raise OSError("the documentation is built without a network")
socket.socket.connect = refuse
sys.modules |= dict.fromkeys(("rl_zoo3", "optuna", "matplotlib", "tensorboard", "pytest", "mypy"))
from sphinx.cmd.build import main
sys.exit(main(sys.argv[1:]))
"""
"""Sphinx as in an environment with the extra docs alone."""


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built with every warning an error."""
    folder = tmp_path_factory.mktemp("html")
    arguments = [
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        "-d",
        str(folder / "doctrees"),
        str(ROOT / "docs"),
        str(folder / "html"),
    ]
    done = subprocess.run([sys.executable, "-c", ALONE, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "html"


def is_external(url: str) -> bool:
    return url.startswith(("http:", "https:", "//"))


@pytest.mark.slow
def test_built_pages_load_nothing_from_elsewhere(html: Path):
    for path in html.rglob("*.html"):
        assert [url for url in Page(path).loaded if is_external(url)] == [], path.name
    for path in [*html.rglob("*.css"), *html.rglob("*.html")]:
        assert re.findall(r"(?:@import\s+|url\()[\"']?(?:https?:)?//[^)\"']*", path.read_text(encoding="utf-8")) == [], (
            path.name
        )


@pytest.mark.slow
def test_equations_are_mathml(html: Path):
    page = html / "multi_goal.html"
    assert Page(page).tags["math"] > 10
    assert r"\lvert" not in page.read_text(encoding="utf-8") and "MathJax" not in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_public_name_has_an_anchor(html: Path):
    anchors = {anchor for path in (html / "api").glob("*.html") for anchor in Page(path).anchors}
    assert set(described()) - anchors == set()


@pytest.mark.slow
def test_links_between_built_pages_lead_somewhere(html: Path):
    pages = {path.resolve(): Page(path) for path in html.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for url in page.links:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            missing = not target.exists() or (
                parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors
            )
            broken += [f"{path.name}: {url}"] if missing else []
    assert broken == []
