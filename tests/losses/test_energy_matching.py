"""What a potential learns from, against brute force, quadrature and the exact likelihood."""

import itertools
import math

import numpy as np
import pytest
import torch as th

from sb3_energy.losses import (
    contrastive_divergence_loss,
    expectile_loss,
    gradient_matching_loss,
    points_between,
    transport_loss,
    transport_pairs,
    value_weights,
)

DOUBLE = th.float64


def cost(starts, ends):
    return (starts - ends).square().sum((-1, -2))


def test_pairs_are_the_cheapest_of_all():
    starts, ends = th.randn(2, 7, 5, 3, dtype=DOUBLE).unbind(0)
    found = transport_pairs(starts, ends)
    every = th.stack([cost(starts, ends[:, list(order)]) for order in itertools.permutations(range(5))])
    th.testing.assert_close(cost(starts, found), every.amin(dim=0))
    assert (cost(starts, found) < cost(starts, ends)).any()
    for state in range(7):
        assert sorted(found[state, :, 0].tolist()) == sorted(ends[state, :, 0].tolist()), "never across observations"


def test_a_translation_is_learned_exactly():
    starts, shift = th.randn(4, 20, 2, dtype=DOUBLE), th.tensor([0.7, -1.2], dtype=DOUBLE)
    moved = (starts + shift)[:, th.randperm(20)]
    ends = transport_pairs(starts, moved)
    th.testing.assert_close(ends - starts, shift.expand_as(starts))
    gradients = (-shift).expand_as(starts)
    th.testing.assert_close(transport_loss(gradients, starts, ends), th.zeros(4, dtype=DOUBLE))
    assert (transport_loss(gradients + 0.1, starts, ends) > 0.01).all()


def test_the_best_field_is_the_conditional_mean():
    """From N(0, 1) to N(2, .5²): the optimal map is a_1 = 2 + a_0 / 2, and what is best at y comes from quadrature over t."""
    y = th.linspace(-1.0, 2.5, 8, dtype=DOUBLE)
    t = (th.arange(4000, dtype=DOUBLE) + 0.5) / 4000
    slope = 1.0 - t / 2.0  # a_t = (1 - t) a_0 + t a_1 = slope a_0 + 2 t
    start = (y[:, None] - 2.0 * t) / slope
    density = th.exp(-0.5 * start.square()) / slope
    exact = (density * (2.0 - start / 2.0)).sum(1) / density.sum(1)

    generator = th.Generator().manual_seed(0)
    starts = th.randn(1, 400_000, 1, dtype=DOUBLE, generator=generator)
    ends = 2.0 + starts / 2.0
    points = points_between(starts, ends, th.rand(1, 400_000, dtype=DOUBLE, generator=generator))
    for at, value in zip(y, exact, strict=True):
        near = (points - at).abs().reshape(-1) < 0.02
        field = th.zeros((), dtype=DOUBLE, requires_grad=True)  # the gradient of V around there
        loss = transport_loss(field.expand(1, int(near.sum()), 1), starts[:, near], ends[:, near]).sum()
        (slope_of_loss,) = th.autograd.grad(loss, field)  # 2 (field + E[a_1 - a_0]) at field = 0
        assert slope_of_loss.item() / 2.0 == pytest.approx(value.item(), rel=0.05, abs=0.02)


def test_contrastive_divergence_is_the_likelihoods_gradient():
    """On a grid, where the model's law is known: E = θ·φ(a), p = exp(-E / ε) / Z."""
    grid = th.linspace(-1.0, 1.0, 400, dtype=DOUBLE)
    features = th.stack([grid, grid.square(), th.sin(5.0 * grid)], dim=-1)
    theta = th.tensor([0.3, -0.8, 0.5], dtype=DOUBLE, requires_grad=True)
    data = th.tensor([[20, 130, 310]])
    temperature = 0.4
    energies = features @ theta
    log_prob = (-energies / temperature).log_softmax(0)
    (exact,) = th.autograd.grad(-log_prob[data].mean(), theta, retain_graph=True)
    weights = log_prob.exp().detach()
    loss = contrastive_divergence_loss(energies[data], energies[None], temperature, weights[None])
    (found,) = th.autograd.grad(loss.sum(), theta)
    th.testing.assert_close(found, exact, rtol=1e-10, atol=1e-12)
    even = contrastive_divergence_loss(features[data] @ theta, (features @ theta)[None], temperature)
    assert (th.autograd.grad(even.sum(), theta)[0] - exact).abs().max() > 0.1, "of other negatives it is another one"


def test_gradient_matching_is_least_at_the_gibbs_density():
    q_gradients = th.randn(3, 6, 2, dtype=DOUBLE, requires_grad=True)
    best = -0.5 / 0.2 * q_gradients.detach()  # V = -(ε / α) Q
    th.testing.assert_close(gradient_matching_loss(best, q_gradients, 0.5, 0.2), th.zeros(3, dtype=DOUBLE))
    gradients = best.clone().requires_grad_(True)
    loss = gradient_matching_loss(gradients + 0.1, q_gradients, 0.5, 0.2)
    th.testing.assert_close(loss.detach(), th.full((3,), 2 * 0.2**2, dtype=DOUBLE))
    loss.sum().backward()
    assert q_gradients.grad is None and gradients.grad.abs().min() > 0.0


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.9])
def test_the_expectile_is_least(expectile):
    targets = th.randn(20_000, dtype=DOUBLE, generator=th.Generator().manual_seed(0))
    value = th.zeros((), dtype=DOUBLE, requires_grad=True)
    optimizer = th.optim.LBFGS([value], max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = expectile_loss(targets - value, expectile).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    above, below = (targets - value).relu().mean(), (value - targets).relu().mean()
    assert (expectile * above).item() == pytest.approx(((1 - expectile) * below).item(), rel=1e-4)
    assert (value.item() > 0.0) == (expectile > 0.5) or math.isclose(expectile, 0.5)


def test_weights_are_for_each_sample():
    best, own = th.tensor([1.0, 2.0, 500.0, -3.0]), th.tensor([2.0, 1.5, 0.0, -3.0], requires_grad=True)
    np.testing.assert_allclose(value_weights(best - own), [0.0, 0.5, 10.0, 0.0])
    np.testing.assert_allclose(value_weights(best - own, "exp", 3.0), [math.exp(-1.0), math.exp(0.5), 3.0, 1.0], rtol=1e-6)
    starts, ends = th.randn(2, 4, 5, 2).unbind(0)
    gradients = th.randn(4, 5, 2, requires_grad=True)
    (value_weights(best - own) * transport_loss(gradients, starts, ends)).sum().backward()
    assert th.equal(gradients.grad.abs().sum((1, 2)) > 0.0, th.tensor([False, True, True, False]))


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: transport_pairs(th.zeros(2, 3, 1), th.zeros(2, 4, 1)), r"starts and ends must be \(B, N, A\) alike"),
        (lambda: contrastive_divergence_loss(th.zeros(1, 1), th.zeros(1, 1), 0.0), "temperature must be above 0, got 0.0"),
        (lambda: expectile_loss(th.zeros(1), 1.0), r"expectile must lie in \(0, 1\), got 1.0"),
        (lambda: value_weights(th.zeros(1), "abs"), r"form must be one of \['relu', 'exp'\], got 'abs'"),
        (lambda: value_weights(th.zeros(1), largest=0.0), "largest must be above 0, got 0.0"),
    ],
)
def test_wrong_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()
