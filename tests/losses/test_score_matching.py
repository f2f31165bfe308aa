"""Score matching recovers the scores of a Gaussian and of a mixture, which are known."""

import math
from functools import partial

import pytest
import torch as th

from sb3_energy.losses import denoising_score_matching_loss, score_matching_loss, sliced_score_matching_loss
from sb3_energy.stats import normal_quantiles

DOUBLE = th.float64
COVARIANCE = th.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=DOUBLE)
NOISE_STD = 0.2


def generator(seed=0):
    return th.Generator().manual_seed(seed)


def least(loss, n_parameters):
    """
    Where a loss is least that is quadratic in the parameters, as score matching is of a sum ``Σ θ_k φ_k`` of known functions.

    :param loss: ``(n_parameters,) -> scalar``
    :param n_parameters: how many
    :return: ``(n_parameters,)``
    """
    zero = th.zeros(n_parameters, dtype=DOUBLE)
    slope = th.autograd.functional.jacobian(loss, zero)
    curvature = th.autograd.functional.hessian(loss, zero)
    return th.linalg.lstsq(curvature + 1e-9 * th.eye(n_parameters, dtype=DOUBLE), -slope.unsqueeze(1)).solution.squeeze(1)


def exact(energy, points):
    return score_matching_loss(energy, points)


def sliced(energy, points):
    """Along 64 directions, whose covariance is the identity."""
    probes = normal_points(64, points.shape[2])[0]
    root = th.linalg.cholesky(probes.T @ probes / len(probes))
    probes = th.linalg.solve_triangular(root, probes.T, upper=False).T
    return sliced_score_matching_loss(energy, points, probes[:, None, None].expand(-1, *points.shape))


def denoising(energy, points):
    """With as many kinds of noise for each point."""
    noise = normal_points(127, points.shape[2])
    copies = points.flatten(0, 1).unsqueeze(1).expand(-1, 127, -1)
    loss = denoising_score_matching_loss(energy, copies, noise.expand(copies.shape), NOISE_STD)
    return loss.reshape(points.shape[:2]).mean(1)


LOSSES = dict(exact=exact, sliced=sliced, denoising=denoising)


def normal_points(n, dimension):
    """``(1, n, dimension)``, which fill a standard normal distribution evenly."""
    points = normal_quantiles(n, th.zeros(1, dimension, dtype=DOUBLE))
    return (points - points.mean(1)) / points.std(1, correction=0)


@pytest.mark.parametrize("name", LOSSES)
def test_a_gaussian_s_score_is_found(name):
    """``E = ½ xᵀ P x - bᵀ x`` has the score ``b - P x``; of blurred examples it is that of a wider Gaussian."""
    mean = th.tensor([0.3, -0.6], dtype=DOUBLE)
    points = mean + normal_points(2047, 2) @ th.linalg.cholesky(COVARIANCE).T

    def energy(theta, x):
        first, second = x.unbind(-1)
        squares = 0.5 * theta[0] * first.square() + 0.5 * theta[1] * second.square() + theta[2] * first * second
        return squares - x @ theta[3:]

    theta = least(lambda theta: LOSSES[name](partial(energy, theta), points).mean(), 5)
    blur = NOISE_STD**2 if name == "denoising" else 0.0
    precision = th.linalg.inv(COVARIANCE + blur * th.eye(2, dtype=DOUBLE))
    found = theta[[0, 2, 2, 1]].reshape(2, 2)
    assert ((found - precision).norm() / precision.norm()).item() < 0.05
    assert ((theta[3:] - precision @ mean).norm() / (precision @ mean).norm()).item() < 0.05


WEIGHTS, MEANS, STD = th.tensor([0.25, 0.75], dtype=DOUBLE), th.tensor([-0.7, 0.6], dtype=DOUBLE), 0.3
CENTRES = th.linspace(-2.4, 2.3, 25, dtype=DOUBLE)


def bumps(theta, x):
    """A sum of Gaussian bumps, and a parabola under them."""
    heights = th.exp(-0.5 * ((x - CENTRES) / 0.3).square())
    return heights @ theta[:-1] + 0.5 * theta[-1] * x.squeeze(-1).square()


def mixture(x, std):
    """Density, up to a factor, and score of two Gaussians: the mean of their scores by responsibility."""
    ways = MEANS - x.unsqueeze(-1)
    parts = WEIGHTS * th.exp(-0.5 * (ways / std).square())
    return parts.sum(-1), (parts * ways).sum(-1) / parts.sum(-1) / std**2


@pytest.mark.parametrize("name", LOSSES)
def test_a_mixture_s_score_is_found_within_five_per_cent(name):
    """By quadrature: points of a grid, each with the weight of its density."""
    grid = th.linspace(-2.4, 2.3, 500, dtype=DOUBLE)
    weights = mixture(grid, STD)[0]

    def loss(theta):
        return (weights * LOSSES[name](partial(bumps, theta), grid.reshape(-1, 1, 1))).sum() / weights.sum()

    theta = least(loss, len(CENTRES) + 1)
    x = grid.clone().requires_grad_()
    (slope,) = th.autograd.grad(bumps(theta, x.unsqueeze(-1)).sum(), x)
    density, score = mixture(grid, math.hypot(STD, NOISE_STD) if name == "denoising" else STD)
    error = (density * (-slope - score).square()).sum() / (density * score.square()).sum()
    assert error.sqrt().item() < 0.05


def quartic(scale):
    """``scale (x⁴ + x y²)``, whose derivatives are known."""
    return lambda x: scale * (x[..., 0].pow(4) + x[..., 0] * x[..., 1].square())


def test_the_exact_loss_is_its_formula_and_keeps_the_graph():
    points, scale = th.randn(3, 7, 2, dtype=DOUBLE, generator=generator()), th.tensor(0.7, dtype=DOUBLE, requires_grad=True)
    x, y = points.unbind(-1)
    squares = (4.0 * x.pow(3) + y.square()).square() + (2.0 * x * y).square()
    traces = 12.0 * x.square() + 2.0 * x
    loss = score_matching_loss(quartic(scale), points)
    th.testing.assert_close(loss, (0.5 * scale**2 * squares - scale * traces).mean(1))
    (slope,) = th.autograd.grad(loss.sum(), scale)
    th.testing.assert_close(slope, (scale * squares - traces).mean(1).sum().detach())


def test_slices_have_the_exact_loss_as_their_mean():
    points = th.randn(2, 5, 2, dtype=DOUBLE, generator=generator())
    probes = th.randn(4000, 2, 5, 2, dtype=DOUBLE, generator=generator(1)).sign()
    th.testing.assert_close(
        sliced_score_matching_loss(quartic(1.0), points, probes),
        score_matching_loss(quartic(1.0), points),
        rtol=0.01,
        atol=0.05,
    )
    axes = th.eye(2, dtype=DOUBLE).reshape(2, 1, 1, 2).expand(2, 2, 5, 2) * math.sqrt(2.0)
    th.testing.assert_close(sliced_score_matching_loss(quartic(1.0), points, axes), score_matching_loss(quartic(1.0), points))


def test_the_denoising_loss_is_its_formula():
    points, noise = th.randn(2, 3, 5, 2, dtype=DOUBLE, generator=generator()).unbind(0)
    x, y = (points + 0.2 * noise).unbind(-1)
    gradients = th.stack([4.0 * x.pow(3) + y.square(), 2.0 * x * y], dim=-1)
    expected = 0.5 * (0.2 * gradients - noise).square().sum(-1).mean(1)
    th.testing.assert_close(denoising_score_matching_loss(quartic(1.0), points, noise, 0.2).detach(), expected)


def test_plans_are_events_too():
    points = th.randn(2, 3, 4, 2, dtype=DOUBLE, generator=generator())

    def energy(x):
        return x.pow(4).sum((-1, -2))

    expected = (0.5 * (4.0 * points.pow(3)).square() - 12.0 * points.square()).sum((-1, -2)).mean(1)
    th.testing.assert_close(score_matching_loss(energy, points).detach(), expected)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda x: sliced_score_matching_loss(quartic(1.0), x, x),
            r"probes must be \(K, \*\(2, 3, 2\)\), got \(2, 3, 2\)",
        ),
        (
            lambda x: denoising_score_matching_loss(quartic(1.0), x, x[:1], 0.1),
            r"noise must be \(2, 3, 2\) as the points are, got \(1, 3, 2\)",
        ),
        (lambda x: denoising_score_matching_loss(quartic(1.0), x, x, 0.0), "noise_std must be above 0, got 0.0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(th.zeros(2, 3, 2))
