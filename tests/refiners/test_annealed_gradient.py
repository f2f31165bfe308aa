"""The gradient sampler of implicit behavioral cloning: its schedule, its temperature, its reach."""

import math
import warnings

import pytest
import torch as th

from sb3_energy.energies import folded, reflected
from sb3_energy.refiners import AnnealedGradient, Langevin, RefinerSequence, refine, select, warn_if_out_of_reach
from sb3_energy.schedules import Constant, Polynomial
from sb3_energy.types import Target, Tick

DOUBLE = th.float64


def generator(seed=0):
    return th.Generator().manual_seed(seed)


def quadratic(curvature=1.0):
    return Target(lambda x: 0.5 * curvature * x.square().sum(-1))


def step_size(refiner, k, n):
    """What the noise of a step is multiplied by, seen from outside: the spread of a step on a flat energy."""
    state = refiner.init(th.zeros(1, 200_000, 1, dtype=DOUBLE), Target(lambda x: 0.0 * x.sum(-1)))
    moved, _ = refiner.step(state, Target(lambda x: 0.0 * x.sum(-1)), Tick(k, n), generator())
    return moved.particles.std().item()


@pytest.mark.parametrize("k", [0, 10, 50, 99])
def test_steps_fall_with_the_square_of_what_remains(k):
    expected = (0.1 - 1e-5) * (1.0 - k / 99) ** 2 + 1e-5
    assert step_size(AnnealedGradient(max_displacement=None), k, 100) == pytest.approx(expected, rel=0.01)


def test_a_step_is_half_the_gradient_and_the_noise_times_the_step_size():
    """Against plain arithmetic with the same noise, in a bound and without one."""
    start = th.randn(2, 3, 4, dtype=DOUBLE, generator=generator())
    target = Target(lambda x: x.pow(4).sum(-1))
    noise = th.randn(start.shape, dtype=DOUBLE, generator=generator(1))
    change = 0.07 * (0.5 * 4.0 * start.pow(3) + 0.5 * noise)
    for bound, expected in ((None, start - change), (0.05, start - change.clamp(-0.05, 0.05))):
        refiner = AnnealedGradient(0.07, 0.5, bound)
        found, info = refiner.step(refiner.init(start, target), target, Tick(0, 1), generator(1))
        th.testing.assert_close(found.particles, expected)
        th.testing.assert_close(info.displacement, (expected - start).norm(dim=-1))
    assert (change.abs() > 0.05).any()


@pytest.mark.parametrize("size, curvature", [(0.1, 1.0), (0.4, 1.0), (0.1, 5.0)])
def test_it_is_a_chain_at_the_temperature_of_its_step_and_not_at_1(size, curvature):
    """On a quadratic the variance is ``λ / (c (1 - c λ / 4))``; Langevin's tends to ``1 / c``."""
    start = th.randn(1, 20_000, 1, dtype=DOUBLE, generator=generator()) / curvature**0.5
    chain = AnnealedGradient(size, max_displacement=None)
    ends = refine(chain, start, quadratic(curvature), n_steps=200, generator=generator(1)).particles
    assert ends.var().item() == pytest.approx(size / (curvature * (1.0 - curvature * size / 4.0)), rel=0.04)
    exact = refine(Langevin(0.02), start, quadratic(curvature), n_steps=200, generator=generator(1)).particles
    assert exact.var().item() == pytest.approx(1.0 / curvature, rel=0.06)
    assert not AnnealedGradient.exact


def test_it_ends_in_the_minimum():
    """Of a quadratic in six dimensions with its minimum off the middle, from everywhere in the box."""
    optimum = th.tensor([0.3, -0.8, 0.5, 0.9, -0.1, 0.0], dtype=DOUBLE)
    start = 2.0 * th.rand(4, 512, 6, dtype=DOUBLE, generator=generator()) - 1.0
    energy = Target(reflected(lambda x: 10.0 * (x - optimum).square().sum(-1)))
    state = refine(AnnealedGradient(), start, energy, n_steps=100, generator=generator(1))
    best = select(state, deterministic=True)
    assert (folded(best) - optimum).abs().max() < 0.02
    settled = refine(AnnealedGradient().settling(100), start, energy, n_steps=200, generator=generator(1))
    assert settled.energies.mean() < state.energies.mean()


def test_settling_takes_the_schedule_and_then_as_many_steps_of_its_last_size():
    sequence = AnnealedGradient(max_displacement=None).settling(50)
    assert isinstance(sequence, RefinerSequence) and sequence.n_steps == 100
    start = th.zeros(1, 1, 1, dtype=DOUBLE)
    slope = Target(lambda x: 2.0 * x.sum(-1))
    ends = refine(sequence.deterministic(), start, slope, n_steps=100).particles.item()
    schedule = Polynomial(0.1, 1e-5, 2.0)
    expected = -sum(schedule(1.0 - k / 49) for k in range(50)) - 50 * 1e-5
    assert ends == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n_steps, published", [(25, 0.42), (50, 0.84), (100, 1.67), (150, 2.5)])
def test_the_reach_is_half_the_sum_of_the_steps(n_steps, published):
    refiner = AnnealedGradient()
    found = refiner.reach(1.0, n_steps)
    assert found == pytest.approx(published, abs=0.02)
    assert refiner.reach(0.5, n_steps) == pytest.approx(0.5 * found)
    if n_steps == 100:
        assert refiner.reach(1.0) == found


@pytest.mark.parametrize("margin", [0.7, 1.0, 6.0])
@pytest.mark.parametrize("bound", [None, 0.1])
def test_the_reach_is_where_the_steepest_slope_leads(margin, bound):
    refiner = AnnealedGradient(max_displacement=bound)
    start = th.zeros(1, 1, 1, dtype=DOUBLE)
    ends = refine(refiner.deterministic(), start, Target(lambda x: margin * x.sum(-1)), n_steps=40).particles
    assert -ends.item() == pytest.approx(refiner.reach(margin, 40), rel=1e-9)


def test_a_reach_below_the_range_is_warned_of():
    with pytest.warns(
        UserWarning, match="a chain of 100 steps gets 1.68 far where slopes are at most 1, and actions are 2 apart"
    ):
        warn_if_out_of_reach(AnnealedGradient(), 1.0, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_out_of_reach(AnnealedGradient(), 1.0, 150)
        warn_if_out_of_reach(AnnealedGradient(), 1.0, 100, width=1.5)
        warn_if_out_of_reach(AnnealedGradient(Constant(0.125)), 1.0, 32)  # exactly 2


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: AnnealedGradient().reach(0.0), ValueError, "margin must be above 0, got 0.0"),
        (lambda: AnnealedGradient().reach(math.nan), ValueError, "margin must be finite, got nan"),
        (lambda: AnnealedGradient().reach(1.0, 0), ValueError, "n_steps must be at least 1, got 0"),
        (lambda: AnnealedGradient().reach(1.0, 2.5), TypeError, "n_steps must be an integer, got 2.5"),
        (lambda: AnnealedGradient().settling(0), ValueError, "steps must be at least 1, got 0"),
        (lambda: warn_if_out_of_reach(AnnealedGradient(), 1.0, 10, 0.0), ValueError, "width must be above 0, got 0.0"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
