"""Stein variational gradient descent: its direction against autograd, its laws, its limits."""

import math

import pytest
import torch as th
from torch import nn

from sb3_energy.energies import squashed
from sb3_energy.refiners import Langevin, SteinVariationalGradientDescent, refine
from sb3_energy.refiners.svgd import rbf_kernel
from sb3_energy.types import Target, Tick
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
    state = refine(SteinVariationalGradientDescent(0.2), start, goal, n_steps=4)
    th.testing.assert_close(state.particles, 0.8**4 * start)


def test_particles_that_met_stay_numbers():
    start = th.zeros((2, 8, 2))
    state = refine(SteinVariationalGradientDescent(), start, Target(lambda x: x.square().sum(-1)), n_steps=5)
    assert th.equal(state.particles, start)


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_particles_take_the_mean_and_the_spread_of_a_gaussian(std):
    goal = Target(lambda x: 0.5 * ((x - 0.7) / std).square().sum(-1))
    refiner = SteinVariationalGradientDescent(0.5 * std**2, max_displacement=None)
    particles = refine(refiner, normal((4, 50, 1)), goal, n_steps=500).particles
    th.testing.assert_close(particles.mean(1), th.full((4, 1), 0.7, dtype=th.float64), rtol=0, atol=0.03 * std)
    th.testing.assert_close(particles.std(1), th.full((4, 1), std, dtype=th.float64), rtol=0.08, atol=0)


def test_particles_share_the_modes_where_descent_alone_would_meet():
    energy = squashed(modes_energy(FOUR, 0.25))
    start = th.atanh(2.0 * th.rand((200, 16, 2), generator=th.Generator().manual_seed(0)) - 1.0)
    particles = refine(
        SteinVariationalGradientDescent(), start, Target(energy), n_steps=30, generator=th.Generator().manual_seed(1)
    ).particles
    box = th.tanh(particles)
    quadrant = 2 * (box[..., 0] > 0).long() + (box[..., 1] > 0).long()
    shares = th.stack([(quadrant == k).double().mean() for k in range(4)])
    assert shares.min() > 0.2
    nearest = (box.unsqueeze(2) - th.tensor(FOUR)).norm(dim=-1).amin(-1)
    assert nearest.mean() < 0.35
    descended = refine(Langevin(1.0, noise_scale=0.0), start, Target(energy), n_steps=30).particles
    assert closest_pair(particles) > 0.15 > 2.0 * closest_pair(descended)


def test_the_first_particle_is_a_draw_wherever_it_started():
    start = th.linspace(-1.0, 1.0, 4, dtype=th.float64).reshape(1, 4, 1).repeat(4000, 1, 1)
    goal = Target(lambda x: 0.5 * x.square().sum(-1))
    kept = refine(
        SteinVariationalGradientDescent(shuffle=False), start, goal, n_steps=2, generator=th.Generator().manual_seed(0)
    ).particles
    mixed = refine(
        SteinVariationalGradientDescent(), start, goal, n_steps=2, generator=th.Generator().manual_seed(0)
    ).particles
    assert (kept == kept[:1]).all() and (kept[:, 0] < 0).all()
    th.testing.assert_close(mixed.sort(dim=1).values, kept.sort(dim=1).values)
    for value in kept[0]:
        assert (mixed[:, 0] == value).double().mean().item() == pytest.approx(0.25, abs=0.03)


def test_no_coordinate_moves_further_than_allowed():
    steep = Target(lambda x: (th.tensor([100.0, 0.1]) * x).sum(-1))
    refiner = SteinVariationalGradientDescent(1.0, max_displacement=0.2, shuffle=False)
    moved = refine(refiner, th.zeros((1, 1, 2)), steep, n_steps=1).particles
    th.testing.assert_close(moved[0, 0], th.tensor([-0.2, -0.1]))
    refiner = SteinVariationalGradientDescent(1.0, max_grad_norm=0.5, max_displacement=None, shuffle=False)
    moved = refine(refiner, th.zeros((1, 1, 2)), steep, n_steps=1).particles
    assert moved.norm().item() == pytest.approx(0.5)


def autograd_jacobians(refiner, x, gradients):
    """Of the direction at each particle, with everything else held fixed: ``(B, N, D, D)``."""
    rows = []
    for b in range(len(x)):
        sigma = math.sqrt(rbf_kernel(x[b : b + 1].flatten(2), refiner.bandwidth)[1].item())
        fixed = SteinVariationalGradientDescent(bandwidth=sigma, max_grad_norm=refiner.max_grad_norm)
        for i in range(x.shape[1]):

            def direction(moving, fixed=fixed, b=b, i=i):
                particles = th.cat([x[b, :i], moving.unsqueeze(0), x[b, i + 1 :]]).unsqueeze(0)
                return fixed.direction(particles, gradients[b : b + 1])[0, i].flatten()

            rows.append(th.autograd.functional.jacobian(direction, x[b, i]).flatten(1))
    return th.stack(rows).reshape(*x.shape[:2], *rows[0].shape)


@pytest.mark.parametrize("bandwidth", [0.7, None])
@pytest.mark.parametrize("event, n", [((2,), 5), ((3, 2), 4), ((2,), 1)])
def test_the_direction_s_jacobian_is_autograd_s(bandwidth, event, n):
    refiner = SteinVariationalGradientDescent(bandwidth=bandwidth, max_grad_norm=1.5)
    x, gradients = normal((3, n, *event)), normal((3, n, *event), 1)
    found = refiner.direction_jacobian(x, gradients)
    th.testing.assert_close(found, autograd_jacobians(refiner, x, gradients))
    assert (found.abs().max() == 0.0) == (n == 1)


@pytest.mark.parametrize("bound", [0.25, 1.0, 2.0])
def test_no_step_bends_space_further_than_allowed(bound):
    x = normal((4, 5, 2)) * th.tensor([0.05, 0.3, 3.0, 30.0], dtype=th.float64).reshape(4, 1, 1)
    goal = Target(lambda x: 0.5 * x.square().sum(-1))
    settings = dict(max_displacement=None, shuffle=False)
    refiner, free = (SteinVariationalGradientDescent(0.8, max_step_norm=m, **settings) for m in (bound, None))
    state = refiner.init(x, goal)
    moved, unbound = (r.step(state, goal, Tick(0, 2))[0].particles - x for r in (refiner, free))
    parts = (moved / unbound).flatten(1)
    th.testing.assert_close(parts, parts[:, :1].expand_as(parts))  # one step size for an observation
    norms = autograd_jacobians(refiner, x, state.extra).flatten(2).norm(dim=2).amax(1)
    assert (0.8 * parts[:, 0] * norms <= bound * (1.0 + 1e-9)).all()
    passes = 0.8 * norms > bound
    assert passes.any() and not passes.all()
    th.testing.assert_close(0.8 * parts[passes, 0] * norms[passes], th.full_like(norms[passes], bound))
    assert th.equal(moved[~passes], unbound[~passes])


SMOOTH = dict(max_displacement=None, shuffle=False, differentiable=True)


@pytest.mark.parametrize(
    "kwargs", [dict(), dict(bandwidth=0.7), dict(max_grad_norm=0.8), dict(max_step_norm=0.2), dict(max_displacement=0.1)]
)
def test_the_unrolled_steps_have_the_gradient_of_finite_differences(kwargs):
    th.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    refiner = SteinVariationalGradientDescent(0.5, **(SMOOTH | kwargs))
    goal = Target(lambda x: net(x).squeeze(-1) + 0.5 * x.square().sum(-1))
    x, weights, parameter = normal((2, 5, 2)).requires_grad_(True), normal((2, 5, 2), 1), net[0].weight

    def value(particles):
        return (weights * refine(refiner, particles, goal, n_steps=4).particles).sum()

    of_start, of_parameter = th.autograd.grad(value(x), [x, parameter])
    h = 1e-6
    with th.no_grad():
        for moved, gradient in ((x, of_start), (parameter, of_parameter)):
            step = normal(moved.shape, 2)
            moved += h * step
            above = value(x)
            moved -= 2.0 * h * step
            below = value(x)
            moved += h * step
            assert (gradient * step).sum().item() == pytest.approx(((above - below) / (2.0 * h)).item(), rel=1e-5)


def test_particles_and_energies_keep_the_graph_and_infos_do_not():
    x, infos = normal((2, 5, 2)).requires_grad_(True), []
    goal = Target(lambda x: 0.5 * x.square().sum(-1))
    state = refine(
        SteinVariationalGradientDescent(differentiable=True),
        x,
        goal,
        n_steps=3,
        generator=th.Generator().manual_seed(0),
        infos=infos,
    )
    assert state.particles.requires_grad and state.energies.requires_grad and x.grad is None
    assert not any(part.requires_grad for info in infos for part in (info.displacement, info.acceptance, info.energy_drop))
    kept = refine(SteinVariationalGradientDescent(), x, goal, n_steps=3, generator=th.Generator().manual_seed(0))
    assert th.equal(state.particles, kept.particles) and not kept.particles.requires_grad
    with th.no_grad():
        assert not refine(SteinVariationalGradientDescent(differentiable=True), x, goal, n_steps=3).particles.requires_grad


def test_the_gradient_is_a_number_where_particles_met_and_no_force_is_left():
    x = th.zeros((1, 4, 2), dtype=th.float64, requires_grad=True)
    goal = Target(lambda x: 0.5 * x.square().sum(-1))
    refiner = SteinVariationalGradientDescent(max_grad_norm=1.0, max_step_norm=0.5, differentiable=True, shuffle=False)
    (gradient,) = th.autograd.grad(refine(refiner, x, goal, n_steps=2).particles.sum(), x)
    assert th.isfinite(gradient).all()


@pytest.mark.parametrize("steepness", [1e2, 1e4, 1e25])
def test_one_particle_on_a_cliff_does_not_hold_up_the_others(steepness):
    def energy(x):
        return 0.5 * x.square().sum(-1) + steepness * (x[..., 0] - 1.5).relu().square()

    start = th.zeros(1, 16, 2)
    start[0, :, 1] = 3.0 + 0.1 * th.randn(16, generator=th.Generator().manual_seed(0))
    start[0, 0] = th.tensor([2.5, 3.0])
    found = refine(SteinVariationalGradientDescent(), start, Target(energy), n_steps=10)
    assert found.particles[0, 1:, 1].mean() < 2.2
