"""Metropolis-adjusted refiners leave the target as it is, whatever the step."""

import math

import pytest
import torch as th

from sb3_energy.energies import squashed
from sb3_energy.refiners import REFINERS, HamiltonianMonteCarlo, Langevin, MetropolisAdjustedLangevin, refine
from sb3_energy.schedules import Constant, Polynomial
from sb3_energy.types import Target, Tick
from tests.laws import exact_draws, modes_energy, total_variation

ONE_D = modes_energy([[0.6], [-0.5]], 0.12, [1.0, 2.0])
TWO_D = modes_energy([[0.6, 0.6], [-0.6, 0.6], [0.6, -0.6], [-0.6, -0.6]], 0.2, [1.0, 2.0, 2.0, 4.0])
N_DRAWS = 100_000
# Steps far too large for the unadjusted algorithm: a quarter to two thirds of the proposals are refused
LARGE = [
    MetropolisAdjustedLangevin(0.1),
    MetropolisAdjustedLangevin(0.1, max_grad_norm=3.0),
    MetropolisAdjustedLangevin(0.1, max_displacement=0.1),
    HamiltonianMonteCarlo(0.25, 3),
    HamiltonianMonteCarlo(0.25, 3, max_grad_norm=3.0),
    HamiltonianMonteCarlo(0.25, 3, max_displacement=0.2),
]


def moved(refiner, energy, dimension, n_steps=20):
    start = exact_draws(energy, dimension, N_DRAWS, th.Generator().manual_seed(0))
    infos = []
    particles = th.atanh(start.float().clamp(-1 + 1e-6, 1 - 1e-6)).unsqueeze(0)
    state = refine(
        refiner, particles, Target(squashed(energy)), n_steps=n_steps, generator=th.Generator().manual_seed(1), infos=infos
    )
    return th.tanh(state.particles[0]), infos


@pytest.mark.parametrize("energy, dimension, bins", [(ONE_D, 1, 40), (TWO_D, 2, 20)])
@pytest.mark.parametrize("refiner", LARGE)
def test_the_target_is_left_as_it_is(refiner, energy, dimension, bins):
    draws, infos = moved(refiner, energy, dimension)
    acceptance = infos[-1].acceptance.mean()
    assert 0.15 < acceptance < 0.97 and infos[-1].displacement.mean() > 0.02
    floor = total_variation(exact_draws(energy, dimension, N_DRAWS, th.Generator().manual_seed(2)), energy, bins)
    assert total_variation(draws, energy, bins) < floor + 0.006


@pytest.mark.parametrize("energy, dimension, bins", [(ONE_D, 1, 40), (TWO_D, 2, 20)])
def test_without_the_test_the_same_step_changes_it(energy, dimension, bins):
    draws, _ = moved(Langevin(0.1, max_displacement=None), energy, dimension)
    assert total_variation(draws, energy, bins) > 0.05


def test_what_is_refused_stays_with_its_energy_and_its_gradient():
    refiner = MetropolisAdjustedLangevin(0.3)
    energy = squashed(ONE_D)
    start = th.randn((4, 50, 1), generator=th.Generator().manual_seed(0), dtype=th.float64)
    state = refiner.init(start, Target(energy))
    after, info = refiner.step(state, Target(energy), Tick(0, 2), th.Generator().manual_seed(1))
    stayed = (after.particles == start).all(-1)
    assert 0 < stayed.sum() < stayed.numel()
    assert th.equal(info.displacement == 0.0, stayed)
    fresh = refiner.init(after.particles, Target(energy))
    th.testing.assert_close(after.energies, fresh.energies)
    th.testing.assert_close(after.extra, fresh.extra)


def test_the_leapfrog_is_reversible_and_of_second_order():
    refiner = HamiltonianMonteCarlo(0.05, 20, max_grad_norm=2.0, max_displacement=0.03)
    goal = Target(lambda x: 0.5 * (x.square() * th.tensor([1.0, 9.0])).sum(-1))
    start = refiner.init(th.randn((2, 5, 2), generator=th.Generator().manual_seed(0)).double(), goal)
    momenta = th.randn((2, 5, 2), generator=th.Generator().manual_seed(1)).double()
    there, final = refiner._leapfrog(start, momenta, goal, 0.05)
    back, returned = refiner._leapfrog(there, -final, goal, 0.05)
    assert (there.particles - start.particles).abs().max() > 0.1
    th.testing.assert_close(back.particles, start.particles)
    th.testing.assert_close(-returned, momenta)

    def error(step_size, n):
        exact = HamiltonianMonteCarlo(step_size, n, max_displacement=None)
        there, final = exact._leapfrog(start, momenta, goal, step_size)
        gained = there.energies + 0.5 * final.square().sum(-1) - start.energies - 0.5 * momenta.square().sum(-1)
        return gained.abs().mean().item()

    assert error(0.02, 25) < 0.02
    assert error(0.02, 25) / error(0.01, 50) == pytest.approx(4.0, rel=0.1), "the leapfrog is of second order"


def test_an_oscillator_turns_as_it_should():
    """With unit mass and frequency, a quarter of a period takes a point at rest from 1 to 0."""
    refiner = HamiltonianMonteCarlo(math.pi / 2000, 1000, max_displacement=None)
    goal = Target(lambda x: 0.5 * x.square().sum(-1))
    start = refiner.init(th.ones((1, 1, 1), dtype=th.float64), goal)
    there, final = refiner._leapfrog(start, th.zeros((1, 1, 1), dtype=th.float64), goal, math.pi / 2000)
    assert there.particles.item() == pytest.approx(0.0, abs=1e-5) and final.item() == pytest.approx(-1.0, abs=1e-5)


def test_without_noise_it_descends_by_the_steps_of_a_leapfrog_at_rest():
    assert MetropolisAdjustedLangevin(0.2, 3.0, 0.5).deterministic() == Langevin(0.2, 0.0, 3.0, 0.5)
    assert HamiltonianMonteCarlo(0.2, 3, 3.0, 0.5).deterministic() == Langevin(0.2**2, 0.0, 3.0, 0.5)
    scheduled = HamiltonianMonteCarlo(Polynomial(0.4, 0.1, 1.0), max_displacement=None).deterministic()
    fixed = HamiltonianMonteCarlo(Constant(0.4), max_displacement=None).deterministic()
    goal, start = Target(lambda x: 0.5 * x.square().sum(-1)), th.ones((1, 1, 1), dtype=th.float64)
    assert refine(scheduled, start, goal, n_steps=2).particles.item() == pytest.approx((1 - 0.08) * (1 - 0.005))
    assert refine(fixed, start, goal, n_steps=2).particles.item() == pytest.approx((1 - 0.08) ** 2)


@pytest.mark.parametrize("name", ["mala", "hmc"])
def test_a_wall_of_infinite_energy_is_never_entered(name):
    wall = Target(lambda x: th.where(x[..., 0] > 0.5, th.inf, x.square().sum(-1)))
    start = th.zeros((1, 500, 2))
    particles = refine(REFINERS[name](), start, wall, n_steps=20, generator=th.Generator().manual_seed(0)).particles
    assert (particles[..., 0] <= 0.5).all() and (particles[..., 0] > 0.3).any()


@pytest.mark.parametrize("name", ["mala", "hmc", "langevin"])
def test_a_chain_that_leaves_the_numbers_says_who_where_and_when(name):
    broken = Target(lambda x: th.where(x[..., 0].abs() > 1.0, th.nan, x.square().sum(-1)))
    start = th.zeros((3, 40, 1))
    start[0] = 0.001
    message = (
        r"appeared at step \d of 9 while \w+ refined the actions of observation \d of a batch of 3; try .*smaller step_size"
    )
    with pytest.raises(FloatingPointError, match=message):
        refine(REFINERS[name](1.0), start, broken, n_steps=9, generator=th.Generator().manual_seed(0))
    start[2] = 2.0  # broken from the start, which a test only sees when it compares
    with pytest.raises(FloatingPointError, match=r"(before the first step|at step 1 of 9) .* observation 2 of"):
        refine(REFINERS[name](1e-4), start, broken, n_steps=9)
