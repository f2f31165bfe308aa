"""A blurred flow that a chain sharpens: the benchmark's truths against closed forms, and what the page says of them."""

import math
from pathlib import Path

import pytest
import torch as th

from benchmarks import sequences
from benchmarks.sampler_draws import Counts
from benchmarks.sequences import SETTINGS, Truth, Wells, draws_of
from sb3_energy.energies import squashed
from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refiners import Flow, refine
from sb3_energy.types import Target

PAGE = Path(__file__).resolve().parents[2] / "docs" / "refiners.md"


def errors(name, dimension, n=4000):
    wells = Wells(dimension)
    return Truth(wells).errors(draws_of(RefinementArguments(**SETTINGS[name]).make_refinement(), wells, n, Counts()))


def test_the_energy_in_the_box_has_the_wells_as_its_density():
    wells = Wells(3)
    u = th.randn(2, 5, 3, dtype=th.float64, generator=th.Generator().manual_seed(0))
    wide = th.tensor(0.2, dtype=th.float64)
    parts = [(share, th.distributions.Normal(side * 4.0 * wide, wide)) for share, side in ((0.7, 1.0), (0.3, -1.0))]
    by_torch = sum(share * part.log_prob(u).exp() for share, part in parts).log()
    th.testing.assert_close(-squashed(wells.energy)(u), by_torch.sum(-1))


def test_the_truths_are_those_of_exact_draws():
    truth, exact = Truth(Wells(2)), Wells(2).exact_draws(100_000, 0.2, th.Generator().manual_seed(0))
    assert float(truth.cells.sum()) == pytest.approx(1.0, abs=1e-6) and float(truth.modes.sum()) == pytest.approx(1.0)
    assert truth.share == pytest.approx(0.7, abs=1e-4)
    alone = 0.5 * math.log(2.0 * math.pi * math.e * 0.2**2) - 0.7 * math.log(0.7) - 0.3 * math.log(0.3)
    assert truth.energy == pytest.approx(alone, abs=1e-3)  # wells that do not overlap
    found = truth.errors(exact)
    assert found["coordinate"] < 0.01 and found["modes"] < 0.005
    assert found["energy"] == pytest.approx(truth.energy, abs=0.01)


def test_the_flow_ends_at_the_blurred_wells():
    """Many steps of the solver, against the blurred density's quadrature."""
    wells = Wells(1)
    start = wells.base_std * th.randn(1, 40_000, 1, dtype=th.float64, generator=th.Generator().manual_seed(0))
    state = refine(Flow("rk4"), start, Target(lambda x: 0.0 * x.sum(-1), velocity=wells.velocity), n_steps=60)
    blurred = Truth(Wells(1, std=math.hypot(0.2, 0.2))).errors(state.particles[0])
    assert blurred["coordinate"] < 0.02 and blurred["modes"] < 0.01
    assert Truth(wells).errors(state.particles[0])["coordinate"] > 0.15


@pytest.mark.parametrize("dimension, within", [(2, 0.05), (6, 0.06)])
def test_five_steps_of_mala_sharpen_a_blurred_flow(dimension, within):
    flow, sharp, truth = errors("flow", dimension), errors("flow, mala, 5 steps", dimension), Truth(Wells(dimension))
    assert flow["coordinate"] > 0.15 and sharp["coordinate"] < within
    assert flow["energy"] - truth.energy > 0.4 and abs(sharp["energy"] - truth.energy) < 0.06
    assert sharp["share"] == pytest.approx(0.7, abs=0.03)


def test_proposals_miss_modes_of_six_coordinates_that_a_flow_finds():
    proposals, flow = errors("mala", 6), errors("flow, mala, 5 steps", 6)
    assert proposals["modes"] > 0.15 and flow["modes"] < 0.09
    assert errors("flow, mala, 5 steps of .3 in units of 1", 6)["coordinate"] > 0.14


def rows(text):
    """The first two cells where the first is a number of coordinates, and the first of other tables."""
    cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in text.splitlines() if line.startswith("|")]
    cells = [row for row in cells if not row[0].startswith("--")]
    return [tuple(row) if row[0] in ("2", "6") else (row[0], "") for row in cells]


def test_the_page_has_a_row_for_each_setting(tmp_path):
    sequences.main(["--draws", "20", "--updates", "1", "--rounds", "1", "--output", str(tmp_path)])
    page = PAGE.read_text(encoding="utf-8").split("### What a few steps are worth")[1]
    made = rows((tmp_path / "table.md").read_text(encoding="utf-8"))
    assert made == rows(page)
    assert {name for _, name in made} >= set(SETTINGS)
