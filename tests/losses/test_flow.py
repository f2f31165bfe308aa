"""What velocities learn from, against closed forms and quadrature in float64."""

import math

import pytest
import torch as th

from sb3_energy.autodiff import jacobian
from sb3_energy.losses import (
    adaptively_weighted,
    average_divergence_targets,
    draw_times,
    flow_matching_loss,
    mean_flow_targets,
    posterior_velocity,
)

A = 2
BASE_MEAN, BASE_STD = th.tensor([[0.3, -0.5]]).double(), th.tensor([[0.8, 0.4]]).double()
MEAN, STD = th.tensor([0.9, 0.2]).double(), th.tensor([0.25, 0.6]).double()


def generator(seed=0):
    return th.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return th.randn(shape, dtype=th.float64, generator=generator(seed))


def gaussian_velocity(x, t):
    """``E[x_1 - x_0 | x_t]`` where both ends are Gaussian and independent, coordinate by coordinate."""
    t = t.unsqueeze(-1)
    variance = (1.0 - t).square() * BASE_STD.square() + t.square() * STD.square()
    slope = (t * STD.square() - (1.0 - t) * BASE_STD.square()) / variance
    return MEAN - BASE_MEAN + slope * (x - (1.0 - t) * BASE_MEAN - t * MEAN)


def test_the_posterior_velocity_is_the_sum_over_candidates():
    """One candidate after the other, with ``log_prob`` of torch's Gaussian."""
    points, candidates, log_weights = normal(1, 3, A), normal(1, 5, A, seed=1), normal(1, 5, seed=2)
    time = th.tensor([[0.0, 0.4, 0.7]]).double()
    found = posterior_velocity(points, time, candidates, log_weights, BASE_MEAN, BASE_STD)
    base = th.distributions.Normal(BASE_MEAN[0], BASE_STD[0])
    for p in range(3):
        t, total, mass = time[0, p], th.zeros(A).double(), 0.0
        for k in range(5):
            x0 = (points[0, p] - t * candidates[0, k]) / (1.0 - t)
            weight = (log_weights[0, k] + base.log_prob(x0).sum()).exp()
            total, mass = total + weight * (candidates[0, k] - x0), mass + weight
        th.testing.assert_close(found[0, p], total / mass, rtol=1e-10, atol=1e-10)


def test_between_gaussians_it_is_the_closed_form():
    """Quadrature: a fine grid of candidates that are weighed by the target's density."""
    line = th.linspace(-6.0, 6.0, 2401, dtype=th.float64)
    for j in range(A):
        mean, std = BASE_MEAN[:, j : j + 1], BASE_STD[:, j : j + 1]
        grid = (MEAN[j] + 2.0 * STD[j] * line).reshape(1, -1, 1)
        log_weights = -0.5 * ((grid[..., 0] - MEAN[j]) / STD[j]).square()
        points, time = 0.5 * normal(1, 40, 1), th.rand((1, 40), dtype=th.float64, generator=generator(1)) * 0.8
        found = posterior_velocity(points, time, grid, log_weights, mean, std)
        expected = gaussian_velocity(points.expand(-1, -1, A), time)[..., j : j + 1]
        th.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def test_with_exact_draws_and_with_weighted_ones_it_is_right_within_monte_carlo_error():
    n, time = 100_000, th.tensor([[0.1, 0.5, 0.8]]).double()
    points = normal(1, 3, A) * 0.3 + 0.5
    exact = MEAN + STD * normal(1, n, A, seed=1)
    wide = MEAN + 2.0 * STD * normal(1, n, A, seed=2)
    log_weights = (-0.5 * ((wide - MEAN) / STD).square() + 0.125 * ((wide - MEAN) / STD).square()).sum(-1)
    for candidates, weights in ((exact, th.zeros(1, n).double()), (wide, log_weights)):
        found = posterior_velocity(points, time, candidates, weights, BASE_MEAN, BASE_STD)
        th.testing.assert_close(found, gaussian_velocity(points, time), rtol=0, atol=0.04)


def test_pairs_have_the_same_mean_gradient_and_more_noise():
    """Rao and Blackwell: the loss of ``x_1 - x_0`` and that of its mean given the point, for a model linear in the point."""
    n_batches, n = 4000, 8
    candidates = (MEAN + STD * normal(n, A)).expand(n_batches, n, A)
    index = th.randint(n, (n_batches, n), generator=generator(4))
    ends = candidates.gather(1, index.unsqueeze(-1).expand(-1, -1, A))
    starts = BASE_MEAN + BASE_STD * normal(n_batches, n, A, seed=1)
    time = 0.9 * th.rand((n_batches, n), dtype=th.float64, generator=generator(2))
    points = starts + time.unsqueeze(-1) * (ends - starts)
    base = BASE_MEAN.expand(n_batches, A), BASE_STD.expand(n_batches, A)
    posterior = posterior_velocity(points, time, candidates, th.zeros(n_batches, n).double(), *base)
    best = (points * posterior).mean((0, 1)) / points.square().mean((0, 1))
    slopes = best.repeat(n_batches, 1, 1).requires_grad_(True)
    gradients = {}
    for name, targets in (("pairs", ends - starts), ("posterior", posterior)):
        loss = flow_matching_loss(slopes * points, targets)
        assert loss.shape == (n_batches,)
        gradients[name] = th.autograd.grad(loss.sum(), slopes)[0].squeeze(1)
    difference = gradients["pairs"] - gradients["posterior"]
    error = difference.std(0) / math.sqrt(n_batches)
    assert (difference.mean(0).abs() < 4.0 * error).all()
    assert (error < 0.03).all(), "else equal means would prove nothing"
    assert (gradients["posterior"].var(0) < 0.9 * gradients["pairs"].var(0)).all()


def test_the_loss_is_the_squared_distance_in_the_mean_over_points():
    velocities, targets = normal(3, 4, A), normal(3, 4, A, seed=1)
    expected = [sum(float((velocities[b, p] - targets[b, p]).norm() ** 2) for p in range(4)) / 4.0 for b in range(3)]
    assert flow_matching_loss(velocities, targets).tolist() == pytest.approx(expected)


# A linear flow dx/dt = (a + b t) x, coordinate by coordinate: x_r = x_t exp(∫ a + b s ds)
SPEED, GAIN = th.tensor([0.8, -1.3]).double(), th.tensor([-0.6, 0.9]).double()


def way(t, r):
    return SPEED * (r - t).unsqueeze(-1) + 0.5 * GAIN * (r.square() - t.square()).unsqueeze(-1)


def speed(x, t):
    return (SPEED + GAIN * t.unsqueeze(-1)) * x


def average(x, t, r):
    step = (r - t).unsqueeze(-1)
    apart = step > 0.0
    return th.where(apart, x * th.expm1(way(t, r)) / th.where(apart, step, 1.0), speed(x, t))


def divergence(x, t, r):
    step = r - t
    return th.where(step > 0.0, way(t, r).sum(-1) / th.where(step > 0.0, step, 1.0), (SPEED + GAIN * t.unsqueeze(-1)).sum(-1))


def times(seed=3):
    return draw_times((4, 50), 0.3, th.zeros(()).double(), generator(seed))


def test_times_are_drawn_as_they_should():
    t, r = draw_times((100, 1000), 0.3, th.zeros(()), generator())
    assert t.shape == r.shape == (100, 1000) and ((t >= 0.0) & (t <= r) & (r <= 1.0)).all()
    same, whole = r == t, r == 1.0
    assert same.double().mean().item() == pytest.approx(0.3, abs=0.01)
    assert whole.double().mean().item() == pytest.approx(0.35, abs=0.01)
    for part in (same, whole, ~same & ~whole):  # the time itself has nothing to do with the part of the way
        shares = th.histc(t[part], 10, 0.0, 1.0) / part.sum()
        assert (shares - 0.1).abs().max() < 0.01
    rest = ((r - t) / (1.0 - t))[~same & ~whole]
    assert (th.histc(rest, 10, 0.0, 1.0) / len(rest) - 0.1).abs().max() < 0.01


def test_adaptive_weights_have_the_gradient_of_the_error_over_the_error():
    errors = th.tensor([[0.01, 4.0], [0.0, 1.0]], dtype=th.float64, requires_grad=True)
    loss = adaptively_weighted(errors, 0.1)
    assert loss.shape == (2,)
    gradient = th.autograd.grad(loss.sum(), errors)[0]
    th.testing.assert_close(gradient, 0.5 / (errors.detach() + 0.1))


def test_the_target_is_linear_in_the_velocity_and_in_the_tangent():
    """The velocity at the point and the direction of the derivative may come from different estimates."""
    x, (t, r) = normal(4, 50, A), times()
    first, second = normal(4, 50, A, seed=6), normal(4, 50, A, seed=7)
    h = 1e-6
    found = mean_flow_targets(average, x, t, r, first, second)
    apart = (r - t > 1e-3) & (t > h)
    slope = (average(x + h * second, t + h, r) - average(x - h * second, t - h, r)) / (2.0 * h)
    expected = first + (r - t).unsqueeze(-1) * slope
    th.testing.assert_close(found[apart], expected[apart], rtol=1e-5, atol=1e-6)


def test_the_exact_average_velocity_is_a_fixed_point():
    x, (t, r) = normal(4, 50, A), times()
    apart = r - t > 1e-3
    assert apart.sum() > 100 and (r == t).sum() > 30
    found = mean_flow_targets(average, x, t, r, speed(x, t), speed(x, t))
    assert (found - average(x, t, r))[apart].abs().amax() < 1e-8
    assert th.equal(found[r == t], speed(x, t)[r == t])


def test_another_average_velocity_is_none():
    x, (t, r) = normal(4, 50, A), times()
    found = mean_flow_targets(lambda x, t, r: 1.1 * average(x, t, r), x, t, r, speed(x, t), speed(x, t))
    assert (found - 1.1 * average(x, t, r)).abs().mean() > 0.03


def test_the_exact_average_divergence_is_a_fixed_point():
    """Of a diagonal flow one probe of signs gives the divergence exactly."""
    x, (t, r) = normal(4, 50, A), times()
    probes = normal(4, 50, A, seed=5).sign()

    def velocity(x, t, r):  # the average, but smooth where the times are equal, which is where its divergence is asked for
        return speed(x, t) if th.equal(t, r) else average(x, t, r)

    found = average_divergence_targets(velocity, divergence, x, t, r, speed(x, t), probes)
    apart = r - t > 1e-3
    assert (found - divergence(x, t, r))[apart].abs().amax() < 1e-8
    # over the whole way it is the logarithm of the determinant of the flow's Jacobian
    whole = th.zeros(4, 50).double(), th.ones(4, 50).double()
    moved = jacobian(lambda x: x + average(x, *whole), x)
    th.testing.assert_close(th.linalg.slogdet(moved).logabsdet, divergence(x, *whole))


def test_probes_estimate_the_divergence_of_a_turn():
    matrix = th.tensor([[0.4, 1.0], [-0.7, 0.3]]).double()
    x, t = normal(1, 20_000, A), th.zeros(1, 20_000).double()
    probes = normal(1, 20_000, A, seed=5).sign()
    found = average_divergence_targets(lambda x, t, r: x @ matrix.T, lambda x, t, r: 0.0 * t, x, t, t, x @ matrix.T, probes)
    assert found.std().item() == pytest.approx(0.3, abs=0.01)  # the off-diagonal terms' sum, times a sign
    assert found.mean().item() == pytest.approx(0.7, abs=0.01)


def test_targets_carry_no_graph():
    x, (t, r) = normal(4, 50, A), times()
    scale = th.ones(A, dtype=th.float64, requires_grad=True)

    def velocity(x, t, r):
        return scale * x * (1.0 + t * r).unsqueeze(-1)

    def spread(x, t, r):
        return (scale * x).sum(-1) * t

    found = mean_flow_targets(velocity, x, t, r, x, x)
    assert not found.requires_grad
    assert not average_divergence_targets(velocity, spread, x, t, r, x, x.sign()).requires_grad
    assert scale.grad is None
