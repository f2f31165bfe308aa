import math

import pytest
import torch as th

from sb3_energy.energies.transforms import log_tanh_jacobian
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.proposals import INITIAL_PARTICLES, draw_coordinates, draw_proposals, mixture_log_prob


def base(batch=3, dimension=2, dtype=th.float64, std=0.6):
    mean = th.linspace(-0.8, 0.8, batch * dimension, dtype=dtype).reshape(batch, dimension)
    return Gaussian(mean, th.full_like(mean, std))


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("dimension, n", [(1, 4001), (2, 601)])
def test_the_density_integrates_to_one(fraction, dimension, n):
    line = th.linspace(-12.0, 12.0, n, dtype=th.float64)
    points = th.cartesian_prod(*[line] * dimension).reshape(1, -1, dimension)
    log_prob = mixture_log_prob(base(1, dimension), points, fraction)
    total = log_prob.logsumexp(1) + dimension * (line[1] - line[0]).log()
    assert total.exp().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_the_density_is_torch_s(fraction):
    gaussian, points = base(), 2.0 * th.randn(3, 50, 2, dtype=th.float64)
    normal = th.distributions.Normal(gaussian.mean.unsqueeze(1), gaussian.std.unsqueeze(1))
    box = th.distributions.Uniform(th.tensor(-1.0).double(), th.tensor(1.0).double(), validate_args=False)
    before = th.distributions.TransformedDistribution(box, th.distributions.TanhTransform().inv)
    densities = (1.0 - fraction) * normal.log_prob(points).sum(-1).exp() + fraction * before.log_prob(points).sum(-1).exp()
    th.testing.assert_close(mixture_log_prob(gaussian, points, fraction), densities.log(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "n, fraction, n_uniform", [(1, 0.5, 0), (1, 1.0, 1), (7, 0.5, 3), (16, 0.5, 8), (8, 0.0, 0), (8, 0.3, 2)]
)
def test_the_share_is_stratified_and_the_base_comes_first(n, fraction, n_uniform):
    far = Gaussian(th.full((4, 2), 50.0), th.ones(4, 2))
    particles, log_prob = draw_proposals(far, n, fraction)
    assert ((particles > 30.0).all(-1).sum(1) == n - n_uniform).all()
    assert (particles[:, : n - n_uniform] > 30.0).all()
    th.testing.assert_close(log_prob, mixture_log_prob(far, particles, n_uniform / n))


def test_draws_have_the_laws_they_should():
    gaussian = base(1)
    particles = draw_proposals(gaussian, 100_000, 0.5, generator=th.Generator().manual_seed(0)).particles[0]
    th.testing.assert_close(particles[:50_000].mean(0), gaussian.mean[0], rtol=0, atol=0.02)
    th.testing.assert_close(particles[:50_000].std(0), gaussian.std[0], rtol=0.02, atol=0)
    box = th.tanh(particles[50_000:])
    assert ((box.abs() > 0.99).double().mean(0) - 0.01).abs().max() < 0.002
    assert box.mean().abs() < 0.01 and abs(box.var().item() - 1.0 / 3.0) < 0.01


def test_weights_average_to_the_volume():
    # E_q[p/q] = 1 for any density p: here the uniform on the box
    particles, log_prob = draw_proposals(base(1, std=0.3), 100_000, 0.5, generator=th.Generator().manual_seed(0))
    weights = (log_tanh_jacobian(particles) - 2.0 * math.log(2.0) - log_prob).exp()
    assert weights.mean().item() == pytest.approx(1.0, abs=0.01)
    assert weights.max() <= 2.0 + 1e-6  # a bound that the Gaussian alone does not have


@pytest.mark.parametrize("log_std", [-20.0, -5.0, 2.0])
@pytest.mark.parametrize("mean", [0.0, 3.0, -50.0])
def test_32_bits_hold_the_actor_s_extremes(log_std, mean):
    gaussian = Gaussian(th.full((2, 6), mean), th.full((2, 6), math.exp(log_std)))
    for fraction in INITIAL_PARTICLES.values():
        particles, log_prob = draw_proposals(gaussian, 1000, fraction, generator=th.Generator().manual_seed(0))
        assert th.isfinite(particles).all() and th.isfinite(log_prob).all()
        assert particles.dtype == log_prob.dtype == th.float32


def test_draws_are_the_generator_s():
    first, second, third = (draw_proposals(base(), 8, 0.5, generator=th.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert th.equal(first.particles, second.particles) and not th.equal(first.particles, third.particles)
    before = th.random.get_rng_state()
    draw_proposals(base(), 8, 0.5, generator=th.Generator().manual_seed(0))
    assert th.equal(before, th.random.get_rng_state())


def test_coordinates_alone_have_the_density_of_one_dimension():
    gaussian = base()
    numbers, log_prob = draw_coordinates(gaussian, 8, 0.3, generator=th.Generator().manual_seed(0))
    assert numbers.shape == log_prob.shape == (3, 8, 2)
    for j in range(2):
        alone = Gaussian(gaussian.mean[:, j : j + 1], gaussian.std[:, j : j + 1])
        th.testing.assert_close(log_prob[..., j], mixture_log_prob(alone, numbers[..., j : j + 1], 0.25))
    far = Gaussian(th.tensor([[50.0, -50.0]]), th.ones(1, 2))
    assert ((draw_coordinates(far, 8, 0.3).particles * far.mean > 0.0)[:, :6]).all(), "each about its own mean"
