"""The density that Stein steps leave: against autograd, in closed form, and against the particles themselves."""

import math
import warnings

import pytest
import torch as th

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.entropy import TraceEntropy
from sb3_energy.refiners import SteinVariationalGradientDescent
from sb3_energy.refiners.svgd import rbf_kernel
from sb3_energy.types import Target, Tick
from tests.entropy.policies import Setting, context_of, refinement_of
from tests.laws import knn_entropy_on_box, modes_energy

FREE = dict(max_displacement=None, shuffle=False)
TARGETS = {d: Target(modes_energy(th.eye(2, d, dtype=th.float64).tolist(), 0.8)) for d in (1, 2)}


def normal(shape, seed=0):
    return th.randn(shape, dtype=th.float64, generator=th.Generator().manual_seed(seed))


def hessian_traces(energy, x):
    """``(B, N)``, by autograd, a particle at a time."""
    rows = [th.autograd.functional.hessian(lambda y: energy(y.reshape(1, 1, -1)).sum(), p) for p in x.flatten(0, 1)]
    return th.stack([row.trace() for row in rows]).reshape(x.shape[:2])


def traces_of_the_step(refiner, target, x, tick, own_gradient):
    """Of the particle's own block of the Jacobian of the real step, with bandwidth, step size and the others held fixed."""
    state, found = refiner.init(x, target), []
    step_size = refiner.step_jacobian(state, tick) / refiner.direction_jacobian(x, state.extra)
    for b in range(len(x)):
        sigma = math.sqrt(rbf_kernel(x[b : b + 1], refiner.bandwidth)[1].item())
        fixed = SteinVariationalGradientDescent(float(step_size[b].mean()), bandwidth=sigma, **FREE)
        for i in range(x.shape[1]):

            def moved(y, b=b, i=i, fixed=fixed):
                particles = th.cat([x[b, :i], y.unsqueeze(0), x[b, i + 1 :]]).unsqueeze(0)
                gradients = state.extra[b : b + 1].clone()
                if own_gradient:
                    own = energy_and_grad(target.energy, y.reshape(1, 1, -1), create_graph=True)[1]
                    gradients = th.cat([gradients[:, :i], own, gradients[:, i + 1 :]], dim=1)
                return fixed.step(state._replace(particles=particles, extra=gradients), target, tick)[0].particles[0, i]

            found.append(th.autograd.functional.jacobian(moved, x[b, i]).trace() - x.shape[2])
    return th.stack(found).reshape(x.shape[:2])


@pytest.mark.parametrize("kwargs", [dict(), dict(bandwidth=0.6), dict(max_step_norm=0.03)], ids=str)
@pytest.mark.parametrize("dimension", [1, 2])
def test_the_trace_is_autograd_s_with_and_without_the_particle_s_own_gradient(kwargs, dimension):
    refiner, target, tick = SteinVariationalGradientDescent(0.3, **kwargs, **FREE), TARGETS[dimension], Tick(0, 2)
    x = normal((3, 5, dimension))
    state = refiner.init(x, target)
    trace = refiner.step_jacobian(state, tick).diagonal(dim1=-2, dim2=-1).sum(-1)
    th.testing.assert_close(trace, traces_of_the_step(refiner, target, x, tick, False), rtol=0, atol=1e-10)
    whole = trace - refiner.own_share(state, tick) * hessian_traces(target.energy, x)
    th.testing.assert_close(whole, traces_of_the_step(refiner, target, x, tick, True), rtol=0, atol=1e-10)


def estimate(refiner, target, x, n_steps, log_prob=None, **kwargs):
    log_prob = x.new_zeros(x.shape[:2]) if log_prob is None else log_prob
    return TraceEntropy(**kwargs).estimate(context_of(refiner, target, x, log_prob, n_steps)).log_prob


@pytest.mark.parametrize("n_steps", [1, 3])
def test_the_estimate_is_the_start_s_log_density_minus_the_traces(n_steps):
    refiner, target, x, log_prob = SteinVariationalGradientDescent(0.2), TARGETS[2], normal((3, 5, 2)), normal((3, 5), 1)
    state, expected = refiner.deterministic().init(x, target), log_prob
    for k in range(n_steps):
        jacobian = 0.2 * refiner.direction_jacobian(state.particles, state.extra)
        expected = expected - th.einsum("bncc->bn", jacobian)
        state, _ = refiner.deterministic().step(state, target, Tick(k, n_steps))
    th.testing.assert_close(estimate(refiner, target, x, n_steps, log_prob), expected.mean(1, keepdim=True))


@pytest.mark.parametrize("dimension", [1, 2])
def test_a_particle_alone_has_the_self_term_only(dimension):
    refiner, target = SteinVariationalGradientDescent(0.1), Target(lambda x: 1.5 * x.square().sum(-1))
    x = normal((4, 1, dimension))
    assert (estimate(refiner, target, x, 3) == 0.0).all()
    # each step shrinks every coordinate by 1 - .1 · 3
    expected = th.full((4, 1), 3 * 0.3 * dimension, dtype=th.float64)
    th.testing.assert_close(estimate(refiner, target, x, 3, self_term=True), expected)


def test_with_the_self_term_it_is_the_determinant_of_all_particles_together_to_first_order():
    """The whole map of five particles by autograd: what is left is of the second order of the step."""
    x, target = normal((1, 5, 2)), TARGETS[2]
    errors = []
    for step_size in (2e-3, 1e-3):
        refiner = SteinVariationalGradientDescent(step_size, bandwidth=0.7, differentiable=True, **FREE)

        def moved(flat, refiner=refiner):
            particles = flat.reshape(1, 5, 2)
            gradients = energy_and_grad(target.energy, particles, create_graph=True)[1]
            return (particles + refiner.step_size * refiner.direction(particles, gradients)).flatten()

        exact = th.linalg.slogdet(th.autograd.functional.jacobian(moved, x.flatten())).logabsdet / 5.0
        th.manual_seed(0)
        many = x.expand(4000, 5, 2)
        errors.append(abs(-estimate(refiner, target, many, 1, self_term=True).mean() - exact).item())
        assert abs(exact) > 100.0 * errors[-1]
    assert errors[1] < 2e-5


def test_the_determinant_and_its_first_order_differ_by_the_second():
    x, gaps = normal((3, 5, 2)), []
    for step_size in (0.02, 0.01):
        refiner = SteinVariationalGradientDescent(step_size)
        first = estimate(refiner, TARGETS[2], x, 1)
        gaps.append((estimate(refiner, TARGETS[2], x, 1, determinant=True) - first).abs())
        state = refiner.init(x, TARGETS[2])
        jacobian = th.eye(2, dtype=th.float64) + step_size * refiner.direction_jacobian(x, state.extra)
        expected = -th.linalg.det(jacobian).abs().log().mean(1, keepdim=True)
        th.testing.assert_close(estimate(refiner, TARGETS[2], x, 1, determinant=True), expected)
    assert (gaps[0] > 0.0).all()
    th.testing.assert_close(gaps[0] / gaps[1], th.full((3, 1), 4.0, dtype=th.float64), rtol=0.1, atol=0)


@pytest.mark.parametrize("kwargs", [dict(), dict(self_term=True), dict(determinant=True)], ids=str)
@pytest.mark.parametrize("dimension", [1, 2])
def test_short_steps_have_the_entropy_of_their_particles(kwargs, dimension):
    th.manual_seed(0)
    setting = Setting(refinement_of("svgd", refiner_kwargs=dict(step_size=0.1)), dimension)
    truth = knn_entropy_on_box(setting.latent(10_000))
    start = knn_entropy_on_box(Setting(refinement_of("svgd", refiner_steps=0), dimension).latent(10_000))
    found, _ = setting.estimate(TraceEntropy(**kwargs), 1000)
    assert found == pytest.approx(truth, abs=0.1)
    assert abs(start - truth) > 0.03, "the steps have changed it"


def test_long_steps_are_warned_of_and_short_ones_are_not():
    goal, x = Target(lambda x: 50.0 * x.square().sum(-1)), normal((4, 6, 2))
    with pytest.warns(UserWarning, match=r"entropy_estimator='trace' counts steps to first order.*max_step_norm=0.5"):
        estimate(SteinVariationalGradientDescent(2.0, max_curvature=None), goal, x, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate(SteinVariationalGradientDescent(2.0, max_curvature=None, max_step_norm=0.5), goal, x, 2)


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        (dict(self_term=1), TypeError, "self_term must be True or False, got 1"),
        (dict(determinant="yes"), TypeError, "determinant must be True or False, got 'yes'"),
        (dict(self_term=True, determinant=True), ValueError, "self_term=True .* needs determinant=False, got True"),
    ],
)
def test_bad_arguments(kwargs, error, match):
    with pytest.raises(error, match=match):
        TraceEntropy(**kwargs)
