import functools
import math

import pytest
import torch as th

from sb3_energy.energies import squashed, tempered
from sb3_energy.energies.transforms import log_tanh_jacobian
from sb3_energy.refiners import MPPI, Langevin, SelfNormalizedImportanceSampling, refine
from sb3_energy.schedules import LinearRamp, Polynomial
from sb3_energy.types import Target
from tests.laws import modes_energy, total_variation

TEMPERATURE = 0.5
# Q-values with modes of different weight; the temperature makes them wider and their weights more equal
ONE_D = modes_energy([[0.6], [-0.5]], 0.25, [1.0, 2.0])
TWO_D = modes_energy([[0.6, 0.6], [-0.6, 0.6], [0.6, -0.6], [-0.6, -0.6]], 0.3, [1.0, 2.0, 2.0, 4.0])
MEAN = th.tensor([-0.6871, 0.8010], dtype=th.float64)
COVARIANCE = 5.0 * th.tensor([[0.2260, 0.1652], [0.1652, 0.6779]], dtype=th.float64)


def soft(energy):
    """An energy multiplied by the temperature, so that the tempered one is what the quadrature has."""
    return squashed(tempered(lambda a: TEMPERATURE * energy(a), TEMPERATURE))


def flat(a):
    return 0.0 * a.sum(-1)


def uniform(shape, seed=0):
    box = 2.0 * th.rand(shape, generator=th.Generator().manual_seed(seed)) - 1.0
    return th.atanh(box.clamp(-1.0 + 1e-6, 1.0 - 1e-6))


def langevin_draws(energy, dimension, n_steps=180, step_size=0.02, n=100_000):
    generator = th.Generator().manual_seed(1)
    state = refine(Langevin(step_size), uniform((1, n, dimension)), Target(soft(energy)), n_steps=n_steps, generator=generator)
    return th.tanh(state.particles[0])


def snis_draws(energy, dimension, batch=400, n=1000):
    particles = uniform((batch, n, dimension))
    target = Target(soft(energy), proposal_log_prob=log_tanh_jacobian(particles) - dimension * math.log(2.0))
    state = refine(SelfNormalizedImportanceSampling(), particles, target, n_steps=1, generator=th.Generator().manual_seed(1))
    return th.tanh(state.particles).reshape(-1, dimension)


@pytest.mark.parametrize("energy, dimension, bins", [(ONE_D, 1, 40), (TWO_D, 2, 20)])
@pytest.mark.parametrize("draw", [langevin_draws, snis_draws])
def test_draws_follow_the_gibbs_density_on_the_box(draw, energy, dimension, bins):
    draws = draw(energy, dimension)
    assert len(draws) >= 100_000
    assert total_variation(draws, energy, bins) < 0.05
    assert total_variation(th.tanh(uniform((100_000, dimension))), energy, bins) > 0.1  # the start does not


@pytest.mark.parametrize("draw", [langevin_draws, snis_draws])
def test_a_flat_energy_gives_the_uniform_distribution(draw):
    draws = draw(flat, 2)
    for share in (draws.abs() > 0.99).double().mean(0):
        assert 0.008 < share < 0.012
    assert total_variation(draws, flat, 20) < 0.05


def test_without_the_jacobian_the_mass_goes_to_the_walls():
    # what the law above catches: known from other code bases
    target = Target(lambda u: flat(th.tanh(u)))
    state = refine(Langevin(0.1), uniform((1, 2000, 1)), target, n_steps=500, generator=th.Generator().manual_seed(1))
    assert (th.tanh(state.particles).abs() > 0.99).double().mean() > 0.5


def gaussian(x):
    y = x.double() - MEAN.to(x.device)
    return 0.5 * ((y @ th.linalg.inv(COVARIANCE)) * y).sum(-1)


@pytest.mark.parametrize("step_size", [0.2, 1.0])
def test_stationary_variance_of_the_unadjusted_algorithm(step_size):
    variances, directions = th.linalg.eigh(COVARIANCE)
    generator = th.Generator().manual_seed(0)
    noise = th.randn(1, 40_000, 2, dtype=th.float64, generator=generator)
    start = MEAN + noise @ th.linalg.cholesky(COVARIANCE).T
    n_steps = int(30 / step_size)
    langevin = Langevin(step_size, max_displacement=None)
    particles = refine(langevin, start, Target(gaussian), n_steps=n_steps, generator=generator).particles[0]
    ratio = ((particles - MEAN) @ directions).square().mean(0) / variances
    th.testing.assert_close(ratio, 1.0 / (1.0 - step_size / (4.0 * variances)), rtol=0.025, atol=0)
    th.testing.assert_close(particles.mean(0), MEAN, rtol=0, atol=0.04)


def test_the_gaussian_is_the_one_of_known_entropy():
    entropy = 0.5 * th.logdet(2.0 * math.pi * math.e * COVARIANCE)
    assert entropy.item() == pytest.approx(3.411, abs=1e-3)


@pytest.mark.parametrize("refiner", [Langevin(0.3, noise_scale=0.0), Langevin(0.3).deterministic()])
def test_noise_scale_zero_is_gradient_descent(refiner):
    x = start = th.randn(2, 3, 2, dtype=th.float64, generator=th.Generator().manual_seed(0))
    for _ in range(4):
        x = x - 0.15 * (x - MEAN) @ th.linalg.inv(COVARIANCE)
    th.testing.assert_close(refine(refiner, start, Target(gaussian), n_steps=4).particles, x)


def test_noise_has_the_variance_of_the_step():
    target = Target(lambda x: 0.0 * x.sum(-1))
    for noise_scale in (0.5, 1.0):
        langevin = Langevin(0.3, noise_scale, max_displacement=None)
        moved = refine(langevin, th.zeros(1, 50_000, 1), target, n_steps=1, generator=th.Generator().manual_seed(0)).particles
        assert moved.var().item() == pytest.approx(0.3 * noise_scale**2, rel=0.02)


def test_schedules_are_asked_at_every_step():
    schedule = Polynomial(0.4, 0.1, 1.0)
    x = start = th.ones(1, 1, 1, dtype=th.float64)
    for step_size in (0.4, 0.3, 0.2, 0.1):
        x = x - 0.5 * step_size * x
    quadratic = Target(lambda y: 0.5 * y.square().sum(-1))
    th.testing.assert_close(refine(Langevin(schedule, noise_scale=0.0), start, quadratic, n_steps=4).particles, x)
    ramp = Langevin(0.3, LinearRamp(0.0, 1.0, start=0.5), max_displacement=None)
    still = refine(ramp, th.zeros(1, 9, 1), Target(lambda y: 0.0 * y.sum(-1)), n_steps=1)  # one step: the ramp's first value
    assert th.equal(still.particles, th.zeros(1, 9, 1))


def test_a_long_gradient_is_shortened_and_a_short_one_kept():
    slopes = th.tensor([3.0, 4.0])
    langevin = Langevin(2.0, noise_scale=0.0, max_grad_norm=2.5, max_displacement=None)
    moved = refine(langevin, th.zeros(1, 1, 2), Target(lambda x: (slopes * x).sum(-1)), n_steps=1).particles
    th.testing.assert_close(moved[0, 0], -slopes / 2.0)
    moved = refine(langevin, th.zeros(1, 1, 2), Target(lambda x: (0.1 * slopes * x).sum(-1)), n_steps=1).particles
    th.testing.assert_close(moved[0, 0], -0.1 * slopes)


def test_no_coordinate_moves_further_than_allowed():
    infos = []
    steep = Target(lambda x: (th.tensor([100.0, 0.1]) * x).sum(-1))
    langevin = Langevin(1.0, noise_scale=0.0, max_displacement=0.2)
    moved = refine(langevin, th.zeros(1, 1, 2), steep, n_steps=1, infos=infos).particles
    th.testing.assert_close(moved[0, 0], th.tensor([-0.2, -0.05]))
    assert infos[0].displacement.item() == pytest.approx(math.hypot(0.2, 0.05))


@pytest.mark.parametrize("refiner", [MPPI(), MPPI().deterministic()])
def test_mppi_concentrates_on_the_optimum_of_a_quadratic(refiner):
    optimum = th.tensor([0.4, -0.7])
    target = Target(lambda x: 200.0 * (x - optimum).square().sum(-1))
    start = th.randn(20, 64, 2, generator=th.Generator().manual_seed(0))
    state = refine(refiner, start, target, n_steps=6, generator=th.Generator().manual_seed(1))
    assert (state.extra.mean - optimum).abs().max() < 0.1
    best = state.energies.amin(1)
    assert best.mean() < 0.1 * (200.0 * (start - optimum).square().sum(-1)).amin(1).mean() + 0.2
    assert (state.extra.std <= 0.2).all() and (state.extra.std >= refiner.min_std).all()


def test_mppi_says_that_it_is_biased_and_is(record_property):
    draws = refine(
        MPPI(), uniform((2000, 64, 2)), Target(soft(TWO_D)), n_steps=3, generator=th.Generator().manual_seed(1)
    ).particles
    bias = total_variation(th.tanh(draws).reshape(-1, 2), TWO_D, 20)
    record_property("total_variation", bias)
    assert not MPPI.exact
    assert bias > 0.05  # were it less, it could call itself exact


def test_snis_asks_for_the_density_of_its_particles():
    with pytest.raises(ValueError, match=r"snis needs Target\.proposal_log_prob"):
        refine(SelfNormalizedImportanceSampling(), uniform((2, 3, 1)), Target(flat), n_steps=1)


@functools.cache
def forbidding(value):
    return lambda x: th.where(x[..., 0] > 0.0, value, x.square().sum(-1))


def test_what_is_forbidden_is_never_drawn():
    particles = uniform((5, 200, 2))
    target = Target(forbidding(math.inf), proposal_log_prob=log_tanh_jacobian(particles))
    draws = refine(SelfNormalizedImportanceSampling(), particles, target, n_steps=1).particles
    assert (draws[..., 0] <= 0.0).all()
    with pytest.raises(FloatingPointError, match="non-finite energy"):
        refine(SelfNormalizedImportanceSampling(), particles.abs(), target, n_steps=1)


@pytest.mark.parametrize("refiner", [Langevin(), MPPI(), SelfNormalizedImportanceSampling()])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_what_is_no_energy_fails(refiner, value):
    particles = uniform((2, 50, 2))
    with pytest.raises(FloatingPointError, match="non-finite energy"):
        refine(refiner, particles, Target(forbidding(value), proposal_log_prob=log_tanh_jacobian(particles)), n_steps=1)
