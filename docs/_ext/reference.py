"""
The API reference: which public names there are, and the page of each. The pages are written when the documentation is built,
so that a new refiner, energy or loss is in the reference as soon as it is in its registry or its package's ``__all__``.

A unit is a module or package of ``sb3_energy``. Its public names are its ``__all__`` or, without one, all public classes and
functions that it defines; a page may restrict a unit to some names. Every unit is on a page or in ``INTERNAL``.
"""

import importlib
import inspect
import pkgutil
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import sb3_energy
from sb3_energy.energies import ENERGIES
from sb3_energy.entropy import ENTROPY_ESTIMATORS
from sb3_energy.networks import BACKBONES
from sb3_energy.refinement.boxes import BOXES
from sb3_energy.refiners import REFINERS

Names = tuple[str, ...] | None


class Page(NamedTuple):
    """
    :param title: heading
    :param intro: reStructuredText below it
    :param units: path of a module or package -> the names to take from it (``None``: all that are public)
    """

    title: str
    intro: str
    units: dict[str, Names]


OTHER_POLICIES = ("CnnPolicy", "MultiInputPolicy")
PAGES = {
    "algorithms": Page(
        "Algorithms",
        "The classes that are trained. Both subclass Stable-Baselines3's ``SAC`` and take all of its arguments; the arguments "
        "of the policy (``policy_kwargs``) are on :doc:`policies`.",
        {"sb3_energy.energy_sac": ("EnergySAC", "flash_sac_kwargs"), "sb3_energy.pgac": ("PGAC",)},
    ),
    "policies": Page(
        "Policies",
        "What ``policy_kwargs`` accepts, and the actors, critics and learned heads that a policy is made of. ``MlpPolicy`` is "
        ":class:`~sb3_energy.policies.refined_policy.RefinedPolicy` for EnergySAC and "
        ":class:`~sb3_energy.pgac.potential_policy.PotentialPolicy` for PGAC.",
        {
            "sb3_energy.policies": (
                "RefinedPolicy",
                "BackboneActor",
                "EnsembleCritic",
                "QuantileCritic",
                "CategoricalCritic",
                "HeadTraining",
                "VelocityHead",
                "AverageVelocityHead",
                "PrefixHead",
            ),
            "sb3_energy.energy_sac": OTHER_POLICIES,
            "sb3_energy.pgac": ("PotentialPolicy", *OTHER_POLICIES, "PotentialTraining"),
        },
    ),
    "refiners": Page(
        "Refiners",
        "Samplers and optimisers that move particles toward low energy: ``policy_kwargs=dict(refiner=..., "
        "refiner_kwargs=...)``. :doc:`../which` helps to choose one.",
        {"sb3_energy.refiners": None},
    ),
    "refinement": Page(
        "Refinement: bases and boxes",
        "A refinement joins a base distribution, an energy and a refiner; a box keeps actions within their bounds.",
        {
            "sb3_energy.refinement": (
                "Refinement",
                "RefinementArguments",
                "Box",
                "TanhBox",
                "ReflectingBox",
                "Base",
                "Gaussian",
                "UniformBase",
                "NoisyActions",
                "MixtureBase",
                "FlowBase",
                "Proposals",
                "draw_proposals",
                "mixture_log_prob",
                "CandidateSettings",
            )
        },
    ),
    "energies": Page(
        "Energies",
        "Functions that are low where an action is good: ``policy_kwargs=dict(energy=..., energy_kwargs=...)``. "
        ":doc:`../energy_of_your_own` shows how to write one.",
        {"sb3_energy.energies": None},
    ),
    "entropy": Page(
        "Entropy estimators",
        "Estimates of ``log π(a|s)`` for refined actions: ``entropy_estimator=..., entropy_estimator_kwargs=...``. "
        ":doc:`../entropy` has their formulas and measured biases.",
        {"sb3_energy.entropy": None},
    ),
    "exploration": Page(
        "Exploration",
        "What actions that collect experience are beside the policy's own: ``exploration=..., exploration_kwargs=...``.",
        {"sb3_energy.energy_sac.exploration": None},
    ),
    "schedules": Page(
        "Schedules",
        "Functions of the remaining part of a refinement, for a refiner's ``step_size`` and ``noise_scale``, or of a "
        "training, for ``learning_rate``.",
        {"sb3_energy.schedules": None},
    ),
    "networks": Page(
        "Networks and backbones",
        "The networks under actors, critics, potentials and velocities: ``policy_kwargs=dict(backbone=...)``.",
        {"sb3_energy.networks": None},
    ),
    "losses": Page("Losses", "Pure functions of tensors; none of them takes an optimiser step.", {"sb3_energy.losses": None}),
    "offline": Page(
        "Offline",
        "Learning from data alone. :doc:`../offline` has examples, :doc:`../ibc` those of ``IBC``, :doc:`../energy_matching` "
        "those of ``EnergyMatching``.",
        {
            "sb3_energy.offline": None,
            "sb3_energy.offline.clones": None,
            "sb3_energy.offline.ibc": ("IBC", "EnergyTraining", "IBCPolicy", "IBCCnnPolicy", "IBCMultiInputPolicy"),
            "sb3_energy.offline.energy_matching": None,
            "sb3_energy.offline.offline_dataset": None,
            "sb3_energy.offline.policies": None,
            "sb3_energy.offline.standardization": None,
            "sb3_energy.offline.sources.dictionary": None,
            "sb3_energy.offline.sources.minari": ("save_minari",),
            "sb3_energy.offline.fit": None,
            "sb3_energy.offline.dataset": None,
            "sb3_energy.offline.averaging": None,
        },
    ),
    "callbacks": Page(
        "Callbacks, pictures and replay buffers",
        "Used together with the algorithms.",
        {
            "sb3_energy.landscape": ("LandscapeCallback", "landscape_of", "Landscape", "draw_landscape"),
            "sb3_energy.fast_updates": ("DeviceReplayBuffer",),
        },
    ),
    "envs": Page(
        "Environments",
        "Small environments with known answers.",
        {
            "sb3_energy.envs": None,
            "sb3_energy.envs.soft_values": None,
            "sb3_energy.envs.lattice": ("lattice_values", "goal_shares"),
            "sb3_energy.envs.exact_answers": None,
        },
    ),
    "zoo": Page(
        "RL Zoo",
        "What registers the algorithms with the RL Zoo. :doc:`../zoo` has the commands.",
        {
            "sb3_energy.zoo": None,
            "sb3_energy.zoo.checkpoints": ("MatchingCheckpointCallback", "save_statistics", "load_statistics"),
        },
    ),
    "extending": Page(
        "Types and tools for your own parts",
        "Protocols that a refiner, an energy or an estimator of your own implements, and functions that help to write one.",
        {
            "sb3_energy.types": None,
            "sb3_energy.steps": None,
            "sb3_energy.stats": None,
            "sb3_energy.autodiff": None,
            "sb3_energy.deferred": ("Checks", "NonFiniteError", "deferred", "require", "require_finite"),
            "sb3_energy.registry": None,
        },
    ),
}
INTERNAL = {
    "sb3_energy.checks",
    "sb3_energy.conversion",
    "sb3_energy.files",
    "sb3_energy.keywords",
    "sb3_energy.matmul",
    "sb3_energy.networks.by_hand",
    "sb3_energy.policies.fast_predict",
    "sb3_energy.training",
}
"""Modules and packages whose names are not for users, even where a package exports them."""
REGISTRIES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "refiner": ("sb3_energy.refiners.REFINERS", REFINERS),
    "energy": ("sb3_energy.energies.ENERGIES", ENERGIES),
    "entropy_estimator": ("sb3_energy.entropy.ENTROPY_ESTIMATORS", ENTROPY_ESTIMATORS),
    "backbone": ("sb3_energy.networks.BACKBONES", BACKBONES),
    "box": ("sb3_energy.refinement.boxes.BOXES", BOXES),
}
"""Keyword -> path and contents of the registry that its names are looked up in."""


def is_in(name: str, *units: str) -> bool:
    """Whether a dotted name is one of the units or inside one."""
    return any(name == unit or name.startswith(f"{unit}.") for unit in units)


def modules_of(unit: str) -> Iterator[ModuleType]:
    """The unit, and if it is a package all of its modules but the internal ones."""
    module = importlib.import_module(unit)
    yield module
    for found in pkgutil.iter_modules(getattr(module, "__path__", []), f"{unit}."):
        if not is_in(found.name, *INTERNAL) and found.name.rpartition(".")[2] != "__main__":
            yield from modules_of(found.name)


def is_described(member: Any, module: ModuleType | None = None) -> bool:
    """Whether it is a class or function of this package (defined in the module), and not of an internal part."""
    home = getattr(member, "__module__", None) or ""
    if not (inspect.isclass(member) or inspect.isfunction(member)) or not is_in(home, "sb3_energy"):
        return False
    return home == module.__name__ if module else not is_in(home, *INTERNAL)


def defined_in(unit: str) -> dict[str, Any]:
    """Path -> public class or function, of all that the unit's modules define."""
    return {
        f"{module.__name__}.{name}": member
        for module in modules_of(unit)
        for name, member in vars(module).items()
        if not name.startswith("_") and is_described(member, module)
    }


def exported_by(unit: str) -> dict[str, Any]:
    """Path -> public class or function, by ``__all__`` where the unit, or a package in it, has one."""
    module = importlib.import_module(unit)
    if hasattr(module, "__all__"):
        members = {f"{unit}.{name}": getattr(module, name) for name in module.__all__}
        return {path: member for path, member in members.items() if is_described(member)}
    inner = [found.name for found in pkgutil.iter_modules(getattr(module, "__path__", []), f"{unit}.")]
    found = {path: m for path, m in defined_in(unit).items() if path.rpartition(".")[0] == unit}
    for name in inner:
        if not is_in(name, *INTERNAL):
            found |= exported_by(name)
    return found


def names_of(page: Page) -> dict[str, Any]:
    """
    :param page: one of ``PAGES``
    :return: shortest importable path -> class or function, in the page's order
    :raises LookupError: if a unit does not have a name that the page takes from it
    """
    found: dict[str, Any] = {}
    for unit, names in page.units.items():
        exported = exported_by(unit)
        if names is None:
            found |= exported
            continue
        available = defined_in(unit) | exported
        for name in names:
            paths = [path for path in available if path.rpartition(".")[2] == name]
            if not paths:
                raise LookupError(f"docs/_ext/reference.py: {unit} has no {name}")
            path = min(paths, key=len)
            found[path] = available[path]
    top = {id(getattr(sb3_energy, name)): f"sb3_energy.{name}" for name in sb3_energy.__all__}
    return {top.get(id(member), path): member for path, member in found.items()}


def contents() -> dict[str, dict[str, Any]]:
    """Page -> its names; what two pages export is on the first of them."""
    found: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    for name, page in PAGES.items():
        found[name] = {path: member for path, member in names_of(page).items() if id(member) not in seen}
        seen |= {id(member) for member in found[name].values()}
    return found


def keyword_of(member: Any) -> str | None:
    """``refiner="langevin"``: how a class, or the class of a value, is asked for by name."""
    for keyword, (_, registry) in REGISTRIES.items():
        for name, value in registry.items():
            if value is member or (inspect.isclass(member) and keyword == "box" and type(value) is member):
                return f'{keyword}="{name}"'
    return None


BASES = (
    "SAC, SACPolicy, BaseAlgorithm, BasePolicy, BaseCallback, CheckpointCallback, ReplayBuffer, Actor, ContinuousCritic, "
    "BaseFeaturesExtractor, Env, Module, tuple"
)
"""Classes of others, whose members are documented elsewhere."""


def entry(path: str, member: Any, heading: str) -> str:
    """A section about one name."""
    keyword = keyword_of(member)
    lines = [heading, "-" * len(heading), ""]
    if keyword:
        lines += [f"By name: ``{keyword}``", ""]
    if inspect.isclass(member):
        lines += [f".. autoclass:: {path}", "   :members:", f"   :inherited-members: {BASES}"]
        lines += (
            ["   :show-inheritance:"]
            if any(not is_in(cls.__module__, "builtins", "typing") for cls in member.__bases__)
            else []
        )
    else:
        lines += [f".. autofunction:: {path}"]
    return "\n".join([*lines, ""])


def summary(member: Any) -> str:
    """The first sentence of a docstring, on one line; neither a full stop in code or parentheses nor a colon ends it."""
    paragraph = re.split(r"\n\n|^:", inspect.cleandoc(member.__doc__ or ""), maxsplit=1, flags=re.MULTILINE)[0]
    sentence = ""
    for part in re.split(r"(?<=\.)\s", " ".join(paragraph.split())):
        sentence = f"{sentence} {part}".strip()
        if sentence.count("``") % 2 == 0 and sentence.count("(") == sentence.count(")"):
            break
    return sentence


def registry_table(keyword: str, path: str, registry: Mapping[str, Any]) -> str:
    """A registry with its names."""
    rows = "\n".join(f'   * ``"{name}"``: {label(value)}' for name, value in registry.items())
    about = f"The names that ``{keyword}`` accepts. Add an entry to make a class of your own known by name."
    return f".. py:data:: {path}\n\n   {about}\n\n{rows}\n"


def label(value: Any) -> str:
    """A link to a class, or to that of a value."""
    cls = value if inspect.isclass(value) else type(value)
    return f":class:`~{cls.__module__}.{cls.__qualname__}`"


def text_of(page: Page, names: dict[str, Any]) -> str:
    """The reStructuredText of a page: its names with their first sentences, registries, then a section for each name."""
    registries = {keyword: found for keyword, found in REGISTRIES.items() if is_in(found[0], *page.units)}
    order = [value for _, registry in registries.values() for value in registry.values() if value in names.values()]
    sorted_paths = sorted(names, key=lambda path: order.index(names[path]) if names[path] in order else len(order))
    parts = [page.title, "=" * len(page.title), "", page.intro, "", ".. list-table::", "   :widths: 30 70", ""]
    for path in sorted_paths:
        role = "class" if inspect.isclass(names[path]) else "func"
        parts += [f"   * - :{role}:`~{path}`", f"     - {summary(names[path])}"]
    parts += ["", *(registry_table(keyword, *found) for keyword, found in registries.items())]
    short = Counter(path.rpartition(".")[2] for path in names)
    headings = {path: ".".join(path.split(".")[-1 if short[path.rpartition(".")[2]] == 1 else 1 :]) for path in names}
    return "\n".join([*parts, *(entry(path, names[path], headings[path]) for path in sorted_paths)])


INDEX = """API reference
=============

Generated from the docstrings. Every argument is documented with the class or function that takes it.

.. toctree::
   :maxdepth: 1

{pages}
"""


def write_pages(folder: Path) -> None:
    """
    Write one page for each of ``PAGES`` and an index; a file that would not change is left alone.

    :param folder: made if missing; other ``.rst`` files in it are removed
    """
    folder.mkdir(exist_ok=True)
    texts = {name: text_of(PAGES[name], names) for name, names in contents().items()}
    texts["index"] = INDEX.format(pages="\n".join(f"   {name}" for name in PAGES))
    for path in folder.glob("*.rst"):
        if path.stem not in texts:
            path.unlink()
    for name, text in texts.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls it; the pages are written before it looks for source files."""
    app.connect("builder-inited", lambda app: write_pages(Path(app.srcdir) / "api"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
