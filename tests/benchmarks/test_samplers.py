"""The gallery: its targets against quadrature and draws, its counters, its files."""

import csv
import math

import pytest
import torch as th

from benchmarks import samplers
from benchmarks.sampler_targets import FOUR_GOALS_ALPHA, CellProbabilities, correlated, flat, four_goals, four_modes, targets
from sb3_energy.common.refinement_arguments import make_refinement
from sb3_energy.envs.soft_values import soft_value_iteration
from sb3_energy.refiners import REFINERS


@pytest.mark.parametrize("name", sorted(targets()))
def test_exact_draws_have_the_cells_probabilities(name):
    cells = CellProbabilities(targets()[name])
    assert float(cells.probabilities.sum()) == pytest.approx(1.0)
    draws = cells.exact_draws(100_000, th.Generator().manual_seed(0))
    assert cells.total_variation(draws) < 0.03
    assert cells.total_variation(-0.3 * draws.abs()) > 0.3


def test_known_entropies():
    assert CellProbabilities(flat).entropy == pytest.approx(2.0 * math.log(2.0), abs=1e-6)
    four_thin = math.log(4.0) + math.log(2.0 * math.pi * math.e * 0.075**2)  # they do not overlap, nor reach the walls
    assert CellProbabilities(four_modes(0.5)).entropy == pytest.approx(four_thin, abs=2e-3)
    gaussian = math.log(2.0 * math.pi * math.e * 0.3**2 * math.sqrt(1.0 - 0.8**2))
    assert CellProbabilities(correlated).entropy == pytest.approx(gaussian, abs=0.02)


def test_four_goals_is_the_environment_s_exact_energy():
    exact = soft_value_iteration(FOUR_GOALS_ALPHA, n_states=57, n_actions=21)
    actions = 2.0 * th.rand((1, 50, 2), generator=th.Generator().manual_seed(0)) - 1.0
    expected = th.as_tensor(-exact.q_value(th.zeros(2).numpy(), actions[0].numpy()) / FOUR_GOALS_ALPHA)
    found = four_goals()(actions)[0].double()
    th.testing.assert_close(found - found.mean(), expected - expected.mean(), rtol=0, atol=0.05)


def test_the_fitted_base_settles_on_a_mode_with_its_width():
    base = samplers.fitted_base(four_modes(0.5))
    centre = th.tanh(base.mean)
    assert (centre - th.tensor([[0.6, 0.0]])).abs().max() < 0.05
    width = base.std * (1.0 - centre.square())
    assert (width / 0.075 - 1.0).abs().max() < 0.15


@pytest.mark.parametrize("name, energies, gradients", [("langevin", 17, 3), ("mala", 16, 6), ("hmc", 16, 9), ("snis", 32, 0)])
def test_evaluations_are_counted(name, energies, gradients):
    counter = samplers.Counter(flat, [0, 0])
    refinement = make_refinement(name, None, None, None, "mixture", True, None)
    base = samplers.fitted_base(flat, n_updates=1)
    samplers.draws_of(refinement, counter, base, 10, seed=0)
    assert counter.counts == [10 * energies, 10 * gradients]


def test_the_command_writes_table_and_picture(tmp_path, capsys):
    samplers.main(["--draws", "300", "--more", "2", "--repetitions", "20", "--rounds", "1", "--output", str(tmp_path)])
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    exact = [name for name, cls in REFINERS.items() if cls.exact and cls.max_steps is None]
    assert len(rows) == len(targets()) * (1 + len(REFINERS) + len(exact) + 2)
    assert all(0.0 < float(row["total_variation"]) <= 1.0 for row in rows)
    text = (tmp_path / "table.md").read_text()
    assert text in capsys.readouterr().out and "| soft value, 256 proposals |" in text
    assert (tmp_path / "gallery.png").read_bytes().startswith(b"\x89PNG")


def test_bad_numbers_are_refused(capsys):
    with pytest.raises(SystemExit):
        samplers.parse(["--draws", "0"])
    assert "--draws must be at least 1, got 0" in capsys.readouterr().err
