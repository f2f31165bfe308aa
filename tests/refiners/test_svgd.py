"""Stein variational gradient descent: its direction against autograd, its laws, its limits."""

import math

import pytest
import torch as th

from sb3_energy.energies import squashed
from sb3_energy.refiners import Langevin, SteinVariationalGradientDescent, refine
from sb3_energy.refiners.svgd import rbf_kernel
from sb3_energy.types import Target
from tests.laws import modes_energy

FOUR = [[0.6, 0.6], [-0.6, 0.6], [0.6, -0.6], [-0.6, -0.6]]


def normal(shape, seed=0):
    return th.randn(shape, dtype=th.float64, generator=th.Generator().manual_seed(seed))


def closest_pair(particles):
    distances = th.cdist(particles, particles) + th.eye(particles.shape[1]) * 9.0
    return distances.amin(dim=(1, 2)).mean()


@pytest.mark.parametrize("bandwidth", [0.7, None])
@pytest.mark.parametrize("event", [(2,), (3, 2)])
def test_direction_is_the_definition_with_autograd_for_the_kernel(bandwidth, event):
    n = 5
    x, gradients = normal((2, n, *event)), normal((2, n, *event), 1)
    found = SteinVariationalGradientDescent(bandwidth=bandwidth).direction(x, gradients)
    for b in range(2):
        flat, scores = x[b].reshape(n, -1), -gradients[b].reshape(n, -1)
        variance = rbf_kernel(flat.unsqueeze(0), bandwidth)[1].item()
        for i in range(n):
            expected = th.zeros_like(flat[0])
            for j in range(n):
                moving = flat[j].clone().requires_grad_(True)
                kernel = th.exp(-(moving - flat[i]).square().sum() / (2.0 * variance))
                (repulsion,) = th.autograd.grad(kernel, moving)
                expected = expected + (kernel.detach() * scores[j] + repulsion) / n
            th.testing.assert_close(found[b, i].flatten(), expected)


def test_bandwidth_is_the_median_s_for_each_observation():
    x = th.tensor([[[0.0], [1.0], [3.0]], [[0.0], [2.0], [6.0]]], dtype=th.float64)  # distances 1, 2, 3 and 2, 4, 6
    kernel, variance = rbf_kernel(x, None)
    th.testing.assert_close(variance.flatten(), th.tensor([4.0, 16.0], dtype=th.float64) / (2.0 * math.log(4.0)))
    th.testing.assert_close(kernel[0], kernel[1])
    assert kernel[0, 0, 1].item() == pytest.approx(math.exp(-math.log(4.0) / 4.0))


def test_one_particle_descends():
    goal = Target(lambda x: 0.5 * x.square().sum(-1))
    start = th.ones((3, 1, 2), dtype=th.float64)
    state = refine(SteinVariationalGradientDescent(0.2), start, goal, 4)
    th.testing.assert_close(state.particles, 0.8**4 * start)


def test_particles_that_met_stay_numbers():
    start = th.zeros((2, 8, 2))
    state = refine(SteinVariationalGradientDescent(), start, Target(lambda x: x.square().sum(-1)), 5)
    assert th.equal(state.particles, start)


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_particles_take_the_mean_and_the_spread_of_a_gaussian(std):
    goal = Target(lambda x: 0.5 * ((x - 0.7) / std).square().sum(-1))
    refiner = SteinVariationalGradientDescent(0.5 * std**2, max_displacement=None)
    particles = refine(refiner, normal((4, 50, 1)), goal, 500).particles
    th.testing.assert_close(particles.mean(1), th.full((4, 1), 0.7, dtype=th.float64), rtol=0, atol=0.03 * std)
    th.testing.assert_close(particles.std(1), th.full((4, 1), std, dtype=th.float64), rtol=0.08, atol=0)


def test_particles_share_the_modes_where_descent_alone_would_meet():
    energy = squashed(modes_energy(FOUR, 0.25))
    start = th.atanh(2.0 * th.rand((200, 16, 2), generator=th.Generator().manual_seed(0)) - 1.0)
    particles = refine(SteinVariationalGradientDescent(), start, Target(energy), 30, th.Generator().manual_seed(1)).particles
    box = th.tanh(particles)
    quadrant = 2 * (box[..., 0] > 0).long() + (box[..., 1] > 0).long()
    shares = th.stack([(quadrant == k).double().mean() for k in range(4)])
    assert shares.min() > 0.2
    nearest = (box.unsqueeze(2) - th.tensor(FOUR)).norm(dim=-1).amin(-1)
    assert nearest.mean() < 0.35
    descended = refine(Langevin(1.0, noise_scale=0.0), start, Target(energy), 30).particles
    assert closest_pair(particles) > 0.15 > 2.0 * closest_pair(descended)


def test_the_first_particle_is_a_draw_wherever_it_started():
    start = th.linspace(-1.0, 1.0, 4, dtype=th.float64).reshape(1, 4, 1).repeat(4000, 1, 1)
    goal = Target(lambda x: 0.5 * x.square().sum(-1))
    kept = refine(SteinVariationalGradientDescent(shuffle=False), start, goal, 2, th.Generator().manual_seed(0)).particles
    mixed = refine(SteinVariationalGradientDescent(), start, goal, 2, th.Generator().manual_seed(0)).particles
    assert (kept == kept[:1]).all() and (kept[:, 0] < 0).all()
    th.testing.assert_close(mixed.sort(dim=1).values, kept.sort(dim=1).values)
    for value in kept[0]:
        assert (mixed[:, 0] == value).double().mean().item() == pytest.approx(0.25, abs=0.03)


def test_no_coordinate_moves_further_than_allowed():
    steep = Target(lambda x: (th.tensor([100.0, 0.1]) * x).sum(-1))
    refiner = SteinVariationalGradientDescent(1.0, max_displacement=0.2, shuffle=False)
    moved = refine(refiner, th.zeros((1, 1, 2)), steep, 1).particles
    th.testing.assert_close(moved[0, 0], th.tensor([-0.2, -0.1]))
    refiner = SteinVariationalGradientDescent(1.0, max_grad_norm=0.5, max_displacement=None, shuffle=False)
    moved = refine(refiner, th.zeros((1, 1, 2)), steep, 1).particles
    assert moved.norm().item() == pytest.approx(0.5)
