"""The tables of arguments in the pages have every argument, with its default."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
from stable_baselines3 import SAC

from sb3_energy import PGAC, EnergySAC
from sb3_energy.refiners import REFINERS

DOCS = Path(__file__).resolve().parents[2] / "docs"


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of all tables below a heading, without their headers."""
    text = (DOCS / page).read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\| (`.*) \|$", text, re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]


def said(page: str, heading: str) -> dict[str, str]:
    """Argument -> its default as the page has it."""
    return {name: cells[1].strip("`") for cells in rows(page, heading) for name in re.findall(r"`(\w+)`", cells[0])}


def policy_defaults(algorithm: type[EnergySAC]) -> dict[str, object]:
    fields = dataclasses.fields(algorithm.policy_aliases["MlpPolicy"].arguments_class)
    return {field.name: field.default for field in fields}


def own_defaults(algorithm: type, parent: type) -> dict[str, object]:
    """Of the arguments that an algorithm has beside its parent's."""
    inherited = inspect.signature(parent).parameters
    return {
        name: parameter.default
        for name, parameter in inspect.signature(algorithm).parameters.items()
        if name not in inherited and parameter.default is not parameter.empty and not name.startswith("_")
    }


def check(page: dict[str, str], defaults: dict[str, object]) -> None:
    """Where a default is ``None``, a page may say in words what that means."""
    wrong = {
        name: (page[name], default)
        for name, default in defaults.items()
        if default is not None and page[name].replace('"', "'") != repr(default)
    }
    assert wrong == {}


OF_CRITICS = {"n_quantiles", "top_quantiles_to_drop_per_net", "n_bins", "support"}  # in the line of the critics


def test_arguments_of_energy_sacs_policy():
    page, defaults = said("energy_sac.md", "Arguments of the policy: `policy_kwargs`"), policy_defaults(EnergySAC)
    assert set(defaults) - set(page) == OF_CRITICS
    assert set(page) - set(defaults) - set(REFINERS) == {"activation_fn"}
    check(page, {name: default for name, default in defaults.items() if name not in OF_CRITICS})


def test_arguments_of_energy_sac():
    page, defaults = said("energy_sac.md", "Arguments of the algorithm"), own_defaults(EnergySAC, SAC)
    assert set(page) == set(defaults) - {"head_training_kwargs"}  # in a table of their own
    check(page, {name: default for name, default in defaults.items() if name in page})


def test_arguments_of_pgacs_policy():
    page, defaults = said("pgac.md", "Arguments of the policy: `policy_kwargs`"), policy_defaults(PGAC)
    of_energy_sac = policy_defaults(EnergySAC)
    assert {name for name in defaults if name not in of_energy_sac} <= set(page) <= set(defaults)


def test_arguments_of_pgac():
    page, defaults = said("pgac.md", "Arguments of the algorithm"), own_defaults(PGAC, EnergySAC)
    assert set(page) >= set(defaults)
    check(page, defaults)


@pytest.mark.parametrize("name", REFINERS)
def test_arguments_of_refiners(name: str):
    (cells,) = [
        cells for cells in rows("energy_sac.md", "Arguments of the policy: `policy_kwargs`") if cells[0] == f"`{name}`"
    ]
    refiner = REFINERS[name]
    steps, particles = (int(number) for number in cells[1].split(", "))
    assert (steps, particles) == (refiner.default_steps, refiner.default_particles)
    page = dict(re.findall(r"(\w+)=([^,`(]+(?:\([^)]*\))?)", cells[2]))
    known = {field.name: field.default for field in dataclasses.fields(refiner) if field.init}
    hidden = {"quasi_random"}  # deterministic() sets it
    assert set(page) == set(known) - hidden
    assert {key: value.replace('"', "'") for key, value in page.items()} == {key: repr(known[key]) for key in page}
