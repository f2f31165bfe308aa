"""Imports obey the ranking of the architecture, checked in the source: nothing is imported to find out."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sb3_energy"
HOOK = ROOT / "_sb3_energy_autoload.py"

RANKS = {
    **dict.fromkeys(
        (
            "types",
            "schedules",
            "autodiff",
            "deferred",
            "matmul",
            "checks",
            "conversion",
            "keywords",
            "registry",
            "files",
            "stats",
            "steps",
        ),
        0,
    ),
    **dict.fromkeys(("energies", "refiners", "entropy", "losses", "networks"), 1),
    "refinement": 2,
    "policies": 3,
    "training": 4,
    "landscape": 4.5,
    "fast_updates": 5,
    **dict.fromkeys(("energy_sac", "offline", "envs"), 6),
    "pgac": 6.25,  # an EnergySAC whose energy learns
    "": 6.5,  # sb3_energy itself re-exports the algorithms
    "zoo": 7,
}
STABLE_BASELINES3_BELOW_POLICIES = tuple(
    f"stable_baselines3.common.{module}" for module in ("type_aliases", "preprocessing", "torch_layers")
)
ONLY_ZOO = ("rl_zoo3", "optuna")


def imported_modules(source: str) -> Iterator[str]:
    """Dotted names of everything that a module imports, anywhere in it; a relative import starts with a dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_in(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def unit_of(name: str) -> str:
    """``sb3_energy.refiners.loop.refine`` -> ``refiners``; a name that ``sb3_energy`` re-exports -> ``""``."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in RANKS else ""


def violation(unit: str, name: str) -> str | None:
    """What is wrong with importing ``name`` in the unit (a file or folder directly under the package), if anything."""
    rank = RANKS[unit]
    if name.startswith("."):
        return "imports are absolute"
    if is_in(name, *ONLY_ZOO) and unit != "zoo":
        return "only zoo may import it"
    if (
        rank < RANKS["policies"]
        and is_in(name, "stable_baselines3", "sb3_contrib")
        and not is_in(name, *STABLE_BASELINES3_BELOW_POLICIES)
    ):
        return f"from Stable-Baselines3, layers below the policies import {', '.join(STABLE_BASELINES3_BELOW_POLICIES)} only"
    if not is_in(name, "sb3_energy") or unit_of(name) == unit:
        return None
    imported = RANKS[unit_of(name)]
    if imported > rank:
        return f"layer {rank} imports layer {imported}"
    if imported == rank and rank > 0:
        return f"siblings of layer {rank} import each other"
    return None


def violations(unit: str, source: str) -> list[str]:
    found = ((name, violation(unit, name)) for name in imported_modules(source))
    return [f"{unit or 'sb3_energy'} imports {name}: {why}" for name, why in found if why]


def unit_of_file(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_unit_has_a_layer():
    assert {unit_of_file(path) for path in FILES} == set(RANKS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_obey_the_layers(path: Path):
    assert violations(unit_of_file(path), path.read_text(encoding="utf-8")) == []


def test_hook_is_standard_library_only_until_the_zoo_is_imported():
    tree = ast.parse(HOOK.read_text(encoding="utf-8"))
    at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [name for node in at_import for name in imported_modules(ast.unparse(node))]
    assert names and all(name.split(".")[0] in sys.stdlib_module_names for name in names)
    others = [name for name in imported_modules(ast.unparse(tree)) if name.split(".")[0] not in sys.stdlib_module_names]
    assert all(is_in(name, "sb3_energy.zoo.plugin") for name in others)


@pytest.mark.parametrize(
    ("unit", "source"),
    [
        ("types", "import sb3_energy.refiners"),
        ("refiners", "from sb3_energy.energies.transforms import squashed"),
        ("refiners", "from sb3_energy import energies"),
        ("energies", "def f():\n    from sb3_energy.policies.refined_policy import RefinedPolicy"),
        ("networks", "from stable_baselines3 import SAC"),
        ("networks", "from stable_baselines3.common.policies import BasePolicy"),
        ("losses", "import sb3_contrib"),
        ("policies", "from sb3_energy.training.guards import Records"),
        ("training", "from sb3_energy import EnergySAC"),
        ("training", "import optuna"),
        ("refinement", "from stable_baselines3.sac.policies import SACPolicy"),
        ("energy_sac", "from sb3_energy.envs import MultiGoalEnv"),
        ("energy_sac", "import rl_zoo3.utils as utils"),
        ("envs", "from ..energy_sac import EnergySAC"),
        ("", "if True:\n    import sb3_energy.zoo.plugin"),
    ],
)
def test_checker_finds_a_violation(unit: str, source: str):
    assert len(violations(unit, source)) == 1


@pytest.mark.parametrize(
    ("unit", "source"),
    [
        ("autodiff", "from sb3_energy.types import EnergyFn"),
        ("refiners", "from sb3_energy.refiners.loop import refine\nfrom sb3_energy.types import Target\nimport torch as th"),
        ("networks", "from stable_baselines3.common.torch_layers import MlpExtractor"),
        ("policies", "from stable_baselines3.sac.policies import SACPolicy\nfrom sb3_energy.refiners import REFINERS"),
        ("energy_sac", "from sb3_energy.policies.refined_policy import RefinedPolicy"),
        ("zoo", "import rl_zoo3, optuna\nfrom sb3_energy import EnergySAC"),
        ("", "from sb3_energy.energy_sac import EnergySAC"),
        ("types", "import typesetting_of_sb3_energy, optuna_like"),
    ],
)
def test_checker_lets_what_is_allowed_pass(unit: str, source: str):
    assert violations(unit, source) == []
