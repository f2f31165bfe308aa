"""Langevin on the schedule of the JKO scheme, and Langevin with a graph. What the scheme is stands in pgac/test_limits.py."""

import math

import pytest
import torch as th

from sb3_energy.refiners import Langevin, jko_langevin, refine
from sb3_energy.types import Target

DOUBLE = th.float64
GOOD = dict(n_steps=5, temperature=0.5, sampling_time=1.0, transport_time=0.5)


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        (dict(n_steps=0), ValueError, "n_steps must be at least 1, got 0"),
        (dict(n_steps=2.0), TypeError, "n_steps must be an integer, got 2.0"),
        (dict(temperature=0.0), ValueError, "temperature must be above 0, got 0.0"),
        (dict(temperature=None), TypeError, "temperature must be a number, got None"),
        (dict(sampling_time=math.inf), ValueError, "sampling_time must be finite, got inf"),
        (dict(sampling_time=None), TypeError, "sampling_time must be a number, got None"),
        (dict(transport_time=-0.1), ValueError, "transport_time must be at least 0, got -0.1"),
        (dict(transport_time="late"), TypeError, "transport_time must be a number, got 'late'"),
        (dict(max_displacement=0.0), ValueError, "max_displacement must be above 0, got 0.0"),
    ],
    ids=str,
)
def test_wrong_arguments(kwargs, error, match):
    with pytest.raises(error, match=f"^{match}$"):
        jko_langevin(**(GOOD | kwargs))


@pytest.mark.parametrize("transport_time", [1.0, 1.5])
def test_whose_transport_takes_all_the_time_has_no_noise(transport_time):
    refiner = jko_langevin(**(GOOD | dict(transport_time=transport_time)))
    assert refiner == refiner.deterministic()


def ends(start, slope, differentiable=True):
    """Of five noisy steps on an energy with one parameter."""
    refiner = Langevin(0.1, 0.5, max_displacement=None, differentiable=differentiable)

    def energy(x):
        return (slope * x).cos().sum(-1) + 0.3 * x.square().sum(-1)

    return refine(refiner, start, Target(energy), n_steps=5, generator=th.Generator().manual_seed(3)).particles


def test_steps_with_a_graph_are_differentiated_through():
    """With respect to the start and to the energy's parameter, as finite differences say; the steps are the same."""
    start = th.randn(2, 3, 2, dtype=DOUBLE, generator=th.Generator().manual_seed(0)).requires_grad_(True)
    slope, h = th.tensor(1.3, dtype=DOUBLE, requires_grad=True), 1e-6
    found = ends(start, slope)
    assert th.equal(found.detach(), ends(start, slope, differentiable=False))
    of_start, of_slope = th.autograd.grad(found.sum(), (start, slope))
    shifted = start.detach().clone()
    shifted[1, 2, 0] += h
    difference = (ends(shifted, slope.detach()) - found.detach()).sum() / h
    assert of_start[1, 2, 0].item() == pytest.approx(difference.item(), rel=1e-4)
    difference = (ends(start.detach(), slope.detach() + h) - found.detach()).sum() / h
    assert of_slope.item() == pytest.approx(difference.item(), rel=1e-4)


def test_nobody_else_pays_for_a_graph():
    start, slope = th.randn(2, 3, 2, dtype=DOUBLE), th.tensor(1.3, dtype=DOUBLE, requires_grad=True)
    assert not ends(start, slope, differentiable=False).requires_grad
    with th.no_grad():
        assert not ends(start, slope).requires_grad
