"""Step sizes find the acceptance they are asked for, each observation its own, and leave the target as it is."""

from dataclasses import replace

import pytest
import torch as th

from sb3_energy.energies import squashed
from sb3_energy.refiners import HamiltonianMonteCarlo, MetropolisAdjustedLangevin, refine
from sb3_energy.types import Target, Tick
from tests.laws import exact_draws, modes_energy, total_variation

MALA = MetropolisAdjustedLangevin(1.5, max_displacement=None, target_acceptance=0.574)
HMC = HamiltonianMonteCarlo(1.2, 3, max_displacement=None, target_acceptance=0.65)
each_chain = pytest.mark.parametrize("refiner", [MALA, HMC])
TWO_WELLS = modes_energy([[0.6], [-0.5]], 0.12, [1.0, 2.0])
ONE_WELL = modes_energy([[0.3]], 0.15)
N_DRAWS = 100_000


def gaussian(stds):
    """Six dimensions, another width for each observation."""
    return Target(lambda x: 0.5 * (x / stds[:, None, None]).square().sum(-1))


def run(refiner, stds, n_steps, n_particles=16, shift=0.0):
    infos, generator = [], th.Generator().manual_seed(0)
    start = stds[:, None, None] * th.randn((len(stds), n_particles, 6), generator=generator)
    start[1:] += shift
    return refine(refiner, start, gaussian(stds), n_steps=n_steps, generator=generator, infos=infos), infos


@each_chain
def test_the_acceptance_is_the_target_from_steps_ten_times_too_small_and_too_large(refiner):
    # The best step is in proportion to the width, of MALA's ε to its square
    width = 10.0 if isinstance(refiner, HamiltonianMonteCarlo) else 10.0**0.5
    stds = th.tensor([width, 1.0, 1.0 / width])
    _, infos = run(refiner, stds, 400)
    found = th.stack([info.acceptance.mean(1) for info in infos[200:]]).mean(0)
    assert (found - refiner.target_acceptance).abs().max() < 0.05, found
    _, infos = run(replace(refiner, target_acceptance=None), stds, 400)
    left = th.stack([info.acceptance.mean(1) for info in infos[200:]]).mean(0)
    assert left[0] > 0.85 and left[2] < 0.2, "without it, they are far off"


@each_chain
def test_it_is_frozen_after_half_of_the_steps(refiner):
    goal, generator = gaussian(th.ones(4)), th.Generator().manual_seed(0)
    state = refiner.init(th.randn((4, 2, 6), generator=generator), goal)
    scales = [state.extra.log_scale]
    for k in range(9):
        state, _ = refiner.step(state, goal, Tick(k, 9), generator)
        scales.append(state.extra.log_scale)
    assert (scales[0] == 0.0).all() and scales[0].shape == (4, 1)
    assert all((scales[k] != scales[k + 1]).all() for k in range(4))
    assert all(th.equal(scales[4], scale) for scale in scales[5:])


@each_chain
def test_the_first_step_is_that_of_robbins_and_monro(refiner):
    goal, generator = gaussian(th.ones(4)), th.Generator().manual_seed(0)
    state = refiner.init(th.randn((4, 5, 6), generator=generator), goal)
    first, info = refiner.step(state, goal, Tick(0, 4), generator)
    surplus = info.acceptance.mean(1, keepdim=True) - refiner.target_acceptance
    th.testing.assert_close(first.extra.log_scale, surplus)
    second, info = refiner.step(first, goal, Tick(1, 4), generator)
    surplus = surplus + 2.0**-0.6 * (info.acceptance.mean(1, keepdim=True) - refiner.target_acceptance)
    th.testing.assert_close(second.extra.log_scale, surplus)


@each_chain
def test_the_scale_multiplies_the_step_size(refiner):
    stds, generator = th.ones(2), [th.Generator().manual_seed(3) for _ in range(2)]
    goal, start = gaussian(stds), th.randn((2, 5, 6), generator=th.Generator().manual_seed(0))
    state = refiner.init(start, goal)
    scaled = state._replace(extra=state.extra._replace(log_scale=th.full((2, 1), 0.5).log()))
    halved = replace(refiner, step_size=0.5 * refiner.step_size, target_acceptance=None)
    found, info = refiner.step(scaled, goal, Tick(1, 2), generator[0])
    expected, expected_info = halved.step(halved.init(start, goal), goal, Tick(1, 2), generator[1])
    th.testing.assert_close(found.particles, expected.particles)
    th.testing.assert_close(info.acceptance, expected_info.acceptance)
    th.testing.assert_close(found.extra.gradients, expected.extra)


@each_chain
def test_observations_tune_alone(refiner):
    stds = th.tensor([1.0, 1.0, 1.0])
    one, _ = run(refiner, stds, 20)
    other, _ = run(refiner, stds, 20, shift=5.0)
    assert th.equal(one.particles[0], other.particles[0]) and th.equal(one.extra.log_scale[0], other.extra.log_scale[0])
    assert not th.equal(one.extra.log_scale[1], other.extra.log_scale[1])


def moved(refiner, energy, n_particles):
    draws, infos = exact_draws(energy, 1, N_DRAWS, th.Generator().manual_seed(0)), []
    start = th.atanh(draws.float().clamp(-1 + 1e-6, 1 - 1e-6)).reshape(-1, n_particles, 1)
    state = refine(refiner, start, Target(squashed(energy)), n_steps=60, generator=th.Generator().manual_seed(1), infos=infos)
    assert infos[0].acceptance.mean() < 0.5 and infos[-1].displacement.mean() > 0.02
    assert (state.extra.log_scale < -0.3).double().mean() > 0.9, "the step was far too large"
    floor = total_variation(exact_draws(energy, 1, N_DRAWS, th.Generator().manual_seed(2)), energy, 40)
    return total_variation(th.tanh(state.particles).reshape(-1, 1), energy, 40) - floor


BOLD = [MetropolisAdjustedLangevin(1.0, target_acceptance=0.574), HamiltonianMonteCarlo(1.0, 3, target_acceptance=0.65)]


@pytest.mark.parametrize("energy, n_particles", [(TWO_WELLS, 50), (ONE_WELL, 50), (ONE_WELL, 1)])
@pytest.mark.parametrize("refiner", BOLD)
def test_tuned_and_then_frozen_the_target_is_left_as_it_is(refiner, energy, n_particles):
    assert moved(refiner, energy, n_particles) < 0.006


def test_a_chain_that_is_tuned_alone_shifts_the_weights_of_wells_it_seldom_leaves():
    """What the docstring warns of: its step size follows the well it is in, and half of the steps are too few to mend it."""
    assert moved(BOLD[0], TWO_WELLS, 1) > 0.02


def test_a_descent_has_nothing_to_tune():
    assert MALA.deterministic() == replace(MALA, target_acceptance=None).deterministic()
    assert HMC.deterministic() == replace(HMC, target_acceptance=None).deterministic()
