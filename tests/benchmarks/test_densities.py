"""The densities of the plane: standardised, on their supports, and measured by an estimate that is 0 where laws agree."""

import numpy as np
import pytest

from benchmarks.densities import METHODS, N_TRAIN, coverage, main, parse, squared_mmd
from benchmarks.density_data import DENSITIES


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_are_what_they_say(name):
    density = DENSITIES[name]
    points = density.draw(40_000, np.random.default_rng(0))
    np.testing.assert_allclose(points.mean(0), 0.0, atol=0.03)
    assert points.var(0).sum() == pytest.approx(2.0, rel=0.02)
    modes, on_support = coverage(density, points)
    assert modes == 1.0 and on_support > 0.985
    shares = np.bincount(density.mode_of(points) + 1, minlength=density.n_modes + 1)[1:] / len(points)
    np.testing.assert_allclose(shares, 1.0 / density.n_modes, rtol=0.06)


@pytest.mark.parametrize("name", DENSITIES)
def test_a_gaussian_is_told_apart(name):
    density, rng = DENSITIES[name], np.random.default_rng(1)
    test, wrong = density.draw(1500, rng), rng.standard_normal((1500, 2))
    assert abs(squared_mmd(density.draw(1500, rng), test)) < 1e-3 < 3e-3 < squared_mmd(wrong, test)
    assert coverage(density, wrong)[1] < 0.9


def test_one_mode_too_few_is_seen():
    density = DENSITIES["eight_gaussians"]
    points = density.draw(4000, np.random.default_rng(0))
    assert coverage(density, points[density.mode_of(points) != 3])[0] == 7 / 8


def test_torchebm_has_either_the_time_or_the_steps():
    data = DENSITIES["two_moons"].draw(500, np.random.default_rng(0))
    args = parse(["--gradient-steps", "3", "--seconds", "1e-9"])
    assert METHODS["TorchEBM"](data, args).gradient_steps <= 1
    assert METHODS["TorchEBM, as many steps"](data, args).gradient_steps == 3


def test_what_was_stored_is_not_computed_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.densities.N_TEST", 300)
    arguments = ["--densities", "two_moons", "--methods", "EnergyMatching", "--gradient-steps", "2", "--output", str(tmp_path)]
    main(arguments)
    first = (tmp_path / "densities.csv").read_text()
    monkeypatch.setattr("benchmarks.densities.METHODS", {"EnergyMatching": None})
    main(arguments)
    assert (tmp_path / "densities.csv").read_text() == first and len(first.splitlines()) == 3
    assert (tmp_path / "densities.png").stat().st_size > 10_000 and N_TRAIN == 10_000
    assert "two moons" in capsys.readouterr().out
