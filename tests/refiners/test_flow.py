"""Solvers on equations whose solution is known, and steps along averages of velocities."""

import math

import pytest
import torch as th

from sb3_energy.refiners import Flow, MeanFlow, refine
from sb3_energy.refiners.flow import SOLVERS
from sb3_energy.types import Target, Tick

# dx/dt = A x + b: a turn that shrinks
A = th.tensor([[-0.5, 1.5], [-1.5, -0.2]], dtype=th.float64)
B = th.tensor([0.7, -0.3], dtype=th.float64)
REST = -th.linalg.solve(A, B)


def start(n=5):
    return th.randn((2, n, 2), dtype=th.float64, generator=th.Generator().manual_seed(0))


def energy(x):
    return x.square().flatten(2).sum(-1)


def linear(x, t):
    return x @ A.T + B


def after(x, duration):
    """Where the linear flow takes ``x`` within ``duration`` ``(B, N)``."""
    turn = th.linalg.matrix_exp(duration[..., None, None] * A)
    return REST + (turn @ (x - REST).unsqueeze(-1)).squeeze(-1)


def averaged(x, t, r):
    duration = r - t
    return (after(x, duration) - x) / duration.unsqueeze(-1)


def braked(x, t):
    """``dx/dt = -(1 + t)² x²``, which ``x_0 / (1 + 7 x_0 / 3)`` solves at ``t = 1``."""
    return -(1.0 + t).square().unsqueeze(-1) * x.square()


def stopped(x):
    return x / (1.0 + 7.0 * x / 3.0)


def run(refiner, n_steps, x, **fields):
    return refine(refiner, x, Target(energy, **fields), n_steps=n_steps).particles


@pytest.mark.parametrize("velocity, solution", [(linear, lambda x: after(x, th.ones(x.shape[:2]))), (braked, stopped)])
@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_half_the_step_leaves_the_order_s_share_of_the_error(solver, order, velocity, solution):
    x = start().sigmoid()
    errors = [(run(Flow(solver), n, x, velocity=velocity) - solution(x)).abs().amax().item() for n in (64, 128)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)
    assert errors[1] > 1e-12, "rounding would decide"


@pytest.mark.parametrize("solver, nodes", [("euler", [0.0]), ("heun", [0.0, 1.0]), ("rk4", [0.0, 0.5, 0.5, 1.0])])
def test_the_time_is_that_of_the_stage(solver, nodes):
    seen = []

    def velocity(x, t):
        assert t.shape == x.shape[:2] and t.dtype == x.dtype
        assert (t == t[0, 0]).all()
        seen.append(t[0, 0].item())
        return 0.0 * x

    run(Flow(solver), 4, start(), velocity=velocity)
    assert seen == pytest.approx([(k + node) / 4.0 for k in range(4) for node in nodes])


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_the_weights_of_a_step_s_stages_sum_to_its_length(solver):
    stages = Flow(solver).stages(start(), Target(energy, velocity=linear), Tick(1, 5))
    assert sum(stage.weight for stage in stages) == pytest.approx(0.2)
    for stage in stages:
        assert th.equal(stage.velocity, linear(stage.particles, stage.time))


@pytest.mark.parametrize("solver, degree", [("euler", 0), ("heun", 1), ("rk4", 3)])
def test_polynomials_of_time_are_integrated_exactly(solver, degree):
    x = start()
    moved = run(Flow(solver), 1, x, velocity=lambda x, t: t.unsqueeze(-1).pow(degree).expand_as(x))
    th.testing.assert_close(moved, x + 1.0 / (degree + 1), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("n_steps", [1, 2, 5])
def test_an_exact_average_lands_where_the_flow_ends(n_steps):
    x = start()
    th.testing.assert_close(
        run(MeanFlow(), n_steps, x, average_velocity=averaged), after(x, th.ones(2, 5)), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("n_steps", [1, 3])
def test_mean_flow_asks_for_the_part_of_the_way_of_its_step(n_steps):
    seen = []

    def average_velocity(x, t, r):
        assert t.shape == r.shape == x.shape[:2]
        seen.append((t[0, 0].item(), r[0, 0].item()))
        return 0.0 * x

    run(MeanFlow(), n_steps, start(), average_velocity=average_velocity)
    assert seen == [pytest.approx((k / n_steps, (k + 1) / n_steps)) for k in range(n_steps)]


def taylor(order):
    """What a solver of this order makes of a linear flow in a third of the time: the exponential series, cut off."""
    return sum(th.linalg.matrix_power(A / 3.0, k) / math.factorial(k) for k in range(order + 1))


@pytest.mark.parametrize(
    "refiner, turn",
    [
        (Flow("euler"), taylor(1)),
        (Flow("heun"), taylor(2)),
        (Flow("rk4"), taylor(4)),
        (MeanFlow(), th.linalg.matrix_exp(A / 3.0)),
    ],
    ids=["euler", "heun", "rk4", "mean flow"],
)
def test_transport_is_the_step_and_can_be_differentiated(refiner, turn):
    x, tick = start().requires_grad_(True), Tick(1, 3)
    target = Target(energy, velocity=linear, average_velocity=averaged)
    moved = refiner.transport(x, target, tick)
    state, info = refiner.step(refiner.init(x, target), target, tick)
    assert th.equal(moved, state.particles)
    th.testing.assert_close(info.displacement, (moved - x).norm(dim=-1))
    th.testing.assert_close(moved, REST + (x - REST) @ turn.T, rtol=0, atol=1e-12)
    for row in range(2):
        (found,) = th.autograd.grad(moved[..., row].sum(), x, retain_graph=True)
        th.testing.assert_close(found, turn[row].expand_as(found), rtol=0, atol=1e-12)
