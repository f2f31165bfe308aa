"""Annealing against quadrature: the benchmark's truths, and what the page says of them."""

import re
from pathlib import Path

import pytest
import torch as th

from benchmarks import annealing
from benchmarks.wells import two_wells
from tests.laws import entropy, log_normalizer, modes_energy

PAGE = Path(__file__).resolve().parents[2] / "docs" / "refiners.md"


@pytest.mark.parametrize("std", [0.1, 0.15])
def test_the_truths_of_a_coordinate_are_the_quadrature_s(std):
    wells = two_wells(std)
    energy = modes_energy([[0.6], [-0.6]], std, [4.0 / 3.0, 2.0 / 3.0])
    points = th.linspace(-1.0, 1.0, 7, dtype=th.float64).reshape(1, 7, 1)
    th.testing.assert_close(wells.well(points).squeeze(-1), energy(points), rtol=1e-5, atol=1e-5)
    assert wells.log_normalizer == pytest.approx(log_normalizer(energy, 1), abs=1e-4)
    assert wells.entropy == pytest.approx(entropy(energy, 1), abs=1e-4)
    assert wells.share == pytest.approx(1.0 / 3.0, abs=0.003)
    assert wells.mean_energy == pytest.approx(0.43, abs=0.02)


def test_an_event_is_as_many_coordinates_as_it_has():
    wells, actions = two_wells(), 2.0 * th.rand(2, 5, 3, 2) - 1.0
    th.testing.assert_close(wells(actions), wells.well(actions).sum((-1, -2)))
    assert wells.n_evaluations == 5


@pytest.mark.slow
@pytest.mark.parametrize("std, dimension, error", [(0.15, 6, 0.05), (0.15, 17, 0.08), (0.1, 6, 0.05)])
def test_the_defaults_are_right_within_what_they_may_cost(std, dimension, error):
    row = annealing.measured("smc", std, dimension, 500)
    wells = two_wells(std)
    assert row["evaluations"] <= 2000
    assert row["share"] == pytest.approx(wells.share, abs=error)
    assert row["energy"] == pytest.approx(wells.mean_energy, rel=0.15)
    assert dimension > 6 or abs(row["log_z"]) < 0.5


def test_importance_sampling_loses_the_other_modes():
    """What the page says of narrow wells, and why particles are divided into groups."""
    assert annealing.measured("snis, 128 particles", 0.1, 17, 250)["share"] < 0.06
    assert annealing.measured("smc, one group", 0.1, 17, 250)["share"] < 0.1
    assert annealing.measured("smc", 0.1, 17, 250)["share"] > 0.25


def test_the_page_has_every_setting():
    text = PAGE.read_text()
    section = text[text.index("## More dimensions") : text.index("## Refiners in sequence")]
    for world, (_, dimensions) in annealing.WORLDS.items():
        for dimension in dimensions:
            (table,) = re.findall(rf"\| {world}, {dimension} dimensions.*?\n\n", section, re.S)
            labels = [line.split("|")[1].strip() for line in table.strip().splitlines()[2:]]
            assert labels == ["quadrature", *annealing.SETTINGS]


def test_the_command_writes_its_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(annealing, "WORLDS", {"wells": (0.15, (1,))})
    annealing.main(["--draws", "4", "--output", str(tmp_path / "page.md")])
    text = (tmp_path / "page.md").read_text()
    assert text.count("\n| smc") == 6 and "| Z / true Z | 1 dimensions |" in text
