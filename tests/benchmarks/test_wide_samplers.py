"""The gallery in many dimensions: its truths against closed forms and quadrature, what it says of wrong samplers, its page."""

import math
from pathlib import Path

import pytest
import torch as th

from benchmarks import sampler_costs, wide_page, wide_samplers
from benchmarks.sampler_costs import model_of
from benchmarks.sampler_draws import Counts
from benchmarks.tables import put_table
from benchmarks.wide_entropies import ESTIMATORS, estimates
from benchmarks.wide_samplers import SETTINGS, draws_of, errors_of, problem, timed
from benchmarks.wide_targets import SHARE, Truth, wide_targets
from sb3_energy.refinement.arguments import RefinementArguments
from sb3_energy.refinement.bases import Gaussian

PAGE = Path(__file__).resolve().parents[2] / "docs" / "refiners.md"


def cells_of_the_plane(n=400):
    """``(1, n², 2)`` middles of cells, and the area of one."""
    line = (th.arange(n, dtype=th.float64) + 0.5) / n * 2.0 - 1.0
    return th.cartesian_prod(line, line).unsqueeze(0), (2.0 / n) ** 2


@pytest.mark.parametrize("name", wide_targets(2))
def test_truths_in_two_dimensions_are_those_of_quadrature(name):
    target = wide_targets(2)[name]
    truth, (points, area) = Truth(target), cells_of_the_plane()
    energies = target.energy(points)[0]
    mass = (-energies).softmax(0)
    mean = (mass.unsqueeze(1) * points[0]).sum(0)
    variances = (mass.unsqueeze(1) * (points[0] - mean).square()).sum(0)
    assert truth.log_normalizer == pytest.approx(float((-energies).logsumexp(0)) + math.log(area), abs=2e-3)
    assert truth.energy == pytest.approx(float((mass * energies).sum()) / 2.0, abs=0.01)
    assert truth.entropy == pytest.approx(-float((mass * (mass.log() - math.log(area))).sum()), abs=0.01)
    assert truth.spread == pytest.approx(float(variances.sqrt().mean()), abs=0.003)
    assert truth.share == pytest.approx(float(mass[target.side(points[0])].sum()), abs=0.01)


def test_truths_in_38_dimensions_are_closed_forms():
    of_one = 0.5 * math.log(2.0 * math.pi * math.e)
    gaussian, modes = (Truth(wide_targets(38)[name]) for name in ("correlated Gaussian", "two modes"))
    chain = 37.0 * 0.5 * math.log(1.0 - 0.8**2)  # of a first-order autoregression
    assert gaussian.entropy == pytest.approx(38.0 * (of_one + math.log(0.2)) + chain, abs=0.05)
    assert gaussian.energy == pytest.approx(0.5, abs=2e-3) and gaussian.spread == pytest.approx(0.2, abs=1e-3)
    choice = -SHARE * math.log(SHARE) - (1.0 - SHARE) * math.log(1.0 - SHARE)  # of modes that do not overlap
    assert modes.entropy == pytest.approx(38.0 * (of_one + math.log(0.15)) + choice, abs=0.05)
    assert modes.share == pytest.approx(SHARE, abs=4e-3)


def test_an_exact_sampler_has_no_errors_and_a_wrong_one_is_seen():
    for name in wide_targets(6):
        found = problem(6, name)
        exact = errors_of(found.target.exact_draws(20_000, th.Generator().manual_seed(1)), found)
        assert exact["share"] == pytest.approx(found.truth.share, abs=0.015)
        assert abs(exact["energy"]) < 0.02 and exact["spread"] == pytest.approx(1.0, abs=0.02)
        base = errors_of(draws_of(RefinementArguments("none").make_refinement(), found, 2000, Counts()), found)
        assert abs(base["share"] - found.truth.share) > 0.1 or abs(base["energy"]) > 0.1 or base["spread"] < 0.8
    best = errors_of(0.0 * exact_draws_like(2000, 6) + 0.5, problem(6, "wells"))  # one point in the larger well
    assert best["share"] == 0.0 and best["energy"] < -0.3 and best["spread"] < 0.1


def exact_draws_like(n, dimension):
    return wide_targets(dimension)["wells"].exact_draws(n, th.Generator().manual_seed(0))


def test_evaluations_are_counted_for_one_state():
    counts = Counts()
    draws_of(RefinementArguments(**SETTINGS["mala, 60 steps"]).make_refinement(), problem(6, "wells"), 10, counts)
    assert (counts.energies, counts.gradients) == (128 * 10, 61 * 10)


@pytest.mark.parametrize("name, within", [("soft_value, 4096 proposals", 0.06), ("smc", 0.15)])
def test_estimates_of_a_density_they_fit(name, within):
    """Two dimensions, a Gaussian that is far from the density, and no constant lost on the way back to the box."""
    th.manual_seed(0)
    target = wide_targets(2)["two modes"]
    base = Gaussian(th.full((40, 2), 0.3), th.full((40, 2), 0.4))
    entropy, log_normalizer = estimates(name, base, target.energy)
    assert entropy.shape == log_normalizer.shape == (40,)
    assert float(entropy.mean()) == pytest.approx(Truth(target).entropy, abs=within)
    assert float(log_normalizer.mean()) == pytest.approx(target.log_normalizer(), abs=within)


def test_a_shifted_energy_shifts_the_log_normalizer_alone():
    target = wide_targets(6)["correlated Gaussian"]
    base = Gaussian(th.zeros(20, 6), th.full((20, 6), 0.2))
    for name in ESTIMATORS:
        found = []
        for shift in (0.0, 2.0):
            th.manual_seed(0)
            found.append(estimates(name, base, lambda a, shift=shift: target.energy(a) + shift))
        th.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-3)
        th.testing.assert_close(found[0][1] - 2.0, found[1][1], rtol=0, atol=1e-3)


def test_timed_models_have_the_actions_and_all_rungs():
    assert model_of(17).action_space.shape == (17,)
    assert timed(SETTINGS["smc, 2 moves"])["refiner_kwargs"] == dict(moves=2, ladder="fixed")
    assert timed(SETTINGS["mala"]) == {}


def test_text_is_put_where_a_page_says(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- /a -->\nafter\n")
    for _ in range(2):
        put_table(page, "a", "new\n")
        assert page.read_text() == "before\n<!-- a -->\nnew\n<!-- /a -->\nafter\n"
    with pytest.raises(ValueError, match="must have a line '<!-- b -->'"):
        put_table(page, "b", "new\n")


def first_cells(text):
    return [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]


def test_the_page_has_the_rows_of_the_command(tmp_path, capsys, monkeypatch):
    for module in (sampler_costs, wide_page):  # a batch of 256 takes seconds
        monkeypatch.setattr(module, "BATCHES", (1, 2))
    arguments = ["--seeds", "0,1", "--dimensions", "2", "--draws", "3", "--observations", "2", "--rounds", "1"]
    for _ in range(2):  # the second finds all on disk
        assert wide_samplers.main([*arguments, "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("finished") == 2
    page = PAGE.read_text(encoding="utf-8").split("<!-- wide gallery -->")[1].split("<!-- /wide gallery -->")[0]
    assert first_cells((tmp_path / "table.md").read_text(encoding="utf-8")) == first_cells(page)
