"""What an installed sb3-energy promises: one version, its extras, its data, its public names and their documentation."""

import importlib
import importlib.metadata
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import sb3_energy
from sb3_energy.zoo import paths

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(sb3_energy.__file__).parent


def modules() -> list[ModuleType]:
    names = (found.name for found in pkgutil.walk_packages([str(PACKAGE)], "sb3_energy."))
    return [sb3_energy, *(importlib.import_module(name) for name in names if not name.endswith("__main__"))]


def undocumented(module: ModuleType) -> list[str]:
    """Public functions, classes and methods of a module whose docstring, if any, does not begin with a summary."""
    missing = [] if module.__doc__ else [module.__name__]
    for name, member in vars(module).items():
        if name.startswith("_") or getattr(member, "__module__", None) != module.__name__:
            continue
        if not (inspect.isclass(member) or inspect.isfunction(member)):
            continue
        members = {name: member}
        if inspect.isclass(member):
            methods = ((key, value) for key, value in vars(member).items() if not key.startswith("_"))
            members |= {f"{name}.{key}": getattr(member, key) for key, value in methods if inspect.isfunction(value)}
        docs = {key: inspect.getdoc(value) or ":" for key, value in members.items()}
        missing += [f"{module.__name__}.{key}" for key, doc in docs.items() if doc.startswith(":")]
    return missing


def test_version_has_one_source():
    version = (PACKAGE / "version.txt").read_text(encoding="utf-8").strip()
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?(a|b|rc|dev)\d+)?", version)
    assert sb3_energy.__version__ == version == importlib.metadata.version("sb3-energy")
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_metadata():
    metadata = importlib.metadata.metadata("sb3-energy")
    assert set(metadata.get_all("Provides-Extra")) == {"zoo", "dmc", "plots", "offline", "tests", "docs", "all"}
    assert set(metadata["Requires-Python"].split(",")) == {">=3.10", "<3.14"}
    assert metadata["License"] == "MIT" or metadata["License-Expression"] == "MIT"
    unconditional = [line for line in importlib.metadata.requires("sb3-energy") if "extra ==" not in line]
    assert not any(re.match(r"(rl_zoo3|optuna|dm_control|matplotlib)\b", line) for line in unconditional)


def test_entry_point_is_the_hook():
    (entry,) = (point for point in importlib.metadata.entry_points(group="torch.backends") if point.name == "sb3_energy")
    assert entry.load() is importlib.import_module("_sb3_energy_autoload").install


def test_package_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_hyperparams_are_found_and_readable():
    files = sorted(paths.hyperparams_dir().glob("*.yml"))
    assert "energy_sac.yml" in [file.name for file in files]
    for file in files:
        assert "default" in yaml.safe_load(file.read_text(encoding="utf-8")), file.name


def test_hyperparams_of_the_wheel_win_over_those_beside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "sb3_energy"
    monkeypatch.setattr(paths, "_PACKAGE", package)
    with pytest.raises(FileNotFoundError, match="reinstall"):
        paths.hyperparams_dir()
    (tmp_path / "hyperparams").mkdir()
    assert paths.hyperparams_dir() == tmp_path / "hyperparams"
    (package / "hyperparams").mkdir(parents=True)
    assert paths.hyperparams_dir() == package / "hyperparams"


@pytest.mark.parametrize("module", [module for module in modules() if hasattr(module, "__all__")], ids=lambda m: m.__name__)
def test_public_names_exist(module: ModuleType):
    assert len(set(module.__all__)) == len(module.__all__)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_sb3_energy_says_what_is_public():
    assert {"EnergySAC", "__version__"} <= set(sb3_energy.__all__)


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_everything_public_is_documented(module: ModuleType):
    assert undocumented(module) == []


def test_checker_finds_what_is_undocumented():
    module = ModuleType("example")
    exec("def f(): pass\nclass C:\n    'doc'\n    def m(self): pass\n    def _p(self): pass\ndef _g(): pass", vars(module))
    exec("def only_a_field(x):\n    ':param x: a number'", vars(module))
    assert undocumented(module) == ["example", "example.f", "example.C.m", "example.only_a_field"]


def test_every_constraint_is_one_exact_version():
    pin = re.compile(r'[A-Za-z0-9_.-]+==[0-9][^+;\s]*(; python_version (<|>=) "3\.1\d")?')
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#") and not pin.fullmatch(line)] == []
