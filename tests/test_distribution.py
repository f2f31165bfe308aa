"""The sdist and the wheel hold everything that is needed, and nothing of the workshop."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sb3_energy").rglob("*.py")}
HYPERPARAMS = {path.name for path in (ROOT / "hyperparams").glob("*.yml")}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel made from it: a file that the sdist lacks cannot reach the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    # setuptools writes into the tree it builds, so that it gets a copy
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "logs"))
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(tree)]
    subprocess.run(build, check=True)
    return folder


def test_wheel_is_whole(dist: Path):
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names >= SOURCES
    assert {f"sb3_energy/hyperparams/{name}" for name in HYPERPARAMS} <= names
    assert {"_sb3_energy_autoload.py", "sb3_energy/py.typed", "sb3_energy/version.txt"} <= names
    assert any(name.endswith("LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"sb3_energy", "_sb3_energy_autoload.py"}


def test_the_description_has_nothing_that_an_index_cannot_show(dist: Path):
    """There links and pictures are relative to the index, and files of the repository are not."""
    (wheel,) = dist.glob("*.whl")
    (metadata,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert targets and all(target.startswith("https://") for target in targets), targets
    assert "## Four goals" in text and "`docs/zoo.md`" in text and "<!--" not in text and "![" not in text


def test_sdist_is_whole(dist: Path):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    assert names >= SOURCES | {f"hyperparams/{name}" for name in HYPERPARAMS}
    assert {"LICENSE", "README.md", "setup.cfg", "setup.py", "pyproject.toml", "_sb3_energy_autoload.py"} <= names
    assert not any(name.startswith(("benchmarks/", "logs/", ".")) for name in names)


def test_wheel_works_outside_the_source_tree(dist: Path, tmp_path: Path):
    (wheel,) = dist.glob("*.whl")
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(pip, check=True)
    code = f"""
import sys
sys.path.insert(0, {str(site)!r})
import sb3_energy
from sb3_energy.zoo.paths import hyperparams_dir
assert sb3_energy.__file__.startswith({str(site)!r}), sb3_energy.__file__
assert hyperparams_dir().is_relative_to({str(site)!r}), hyperparams_dir()
print(*sorted(path.name for path in hyperparams_dir().glob("*.yml")))
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert set(found.stdout.split()) == HYPERPARAMS
