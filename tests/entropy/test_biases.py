"""docs/entropy.md says what is so: its tables are those of the registries and of what is measured."""

import re
from pathlib import Path

import pytest
import torch as th

from sb3_energy.refiners import REFINERS
from tests.entropy.biases import CASES
from tests.entropy.policies import ENERGIES
from tests.laws import entropy, exact_draws, knn_entropy, knn_entropy_on_box

PAGE = (Path(__file__).parents[2] / "docs" / "entropy.md").read_text(encoding="utf-8")


def rows(heading):
    """Label -> the other cells, of the table below a heading."""
    lines = [line for line in PAGE.split(heading)[1].split("\n## ")[0].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


MEASURED = {" | ".join(cells[:2]): [float(cell) for cell in cells[2:6]] for cells in rows("## Measured biases")}


def test_the_measured_table_has_a_row_for_every_case():
    assert list(MEASURED) == [case.label for case in CASES]
    pairs = {(name, estimator) for name, cls in REFINERS.items() for estimator in cls.estimators}
    assert pairs == {(case.refiner, case.estimator) for case in CASES}


def test_the_table_of_valid_pairs_is_the_refiners():
    said = {cells[0].strip("` "): re.findall(r"`(\w+)`", cells[1]) for cells in rows("## Which refiner takes which")}
    assert said == {name: list(cls.estimators) for name, cls in REFINERS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_the_bias_is_what_the_page_says(case, dimension):
    said = dict(zip(("entropy", "bias"), MEASURED[case.label][2 * dimension - 2 :], strict=False))
    bias, truth = case.bias(dimension)
    assert truth == pytest.approx(said["entropy"], abs=0.06)
    assert bias == pytest.approx(said["bias"], abs=0.08)


@pytest.mark.parametrize("dimension", [1, 2])
def test_the_nearest_neighbours_know_the_entropy(dimension):
    """The measure itself, on draws from a density whose entropy the midpoint rule knows, and on a Gaussian."""
    generator = th.Generator().manual_seed(0)
    draws = exact_draws(ENERGIES[dimension], dimension, 20_000, generator)
    truth = entropy(ENERGIES[dimension], dimension)
    assert knn_entropy_on_box(th.atanh(draws)) == pytest.approx(truth, abs=0.02)
    assert knn_entropy(draws) == pytest.approx(truth, abs=0.03)
    noise = th.randn(20_000, dimension, dtype=th.float64, generator=generator)
    assert knn_entropy(0.3 * noise) == pytest.approx(float(th.distributions.Normal(0.0, 0.3).entropy()) * dimension, abs=0.03)
