"""The bound from whole paths: in closed form where everything is linear, against the chain's own entropy elsewhere."""

import itertools
import math

import numpy as np
import pytest
import torch as th

from sb3_energy.entropy import PathEntropy
from sb3_energy.networks import FieldNetwork
from sb3_energy.refiners import Langevin
from sb3_energy.types import Target
from tests.entropy.policies import N_FEATURES, Setting, context_of, refinement_of, taught_reverse
from tests.laws import knn_entropy_on_box

STEP, N_STEPS, MEAN, START_MEAN, START_VARIANCE, VARIANCE = 0.4, 5, 0.3, -0.8, 0.2, 0.7
"""A chain toward ``N(.3, .7)`` from ``N(-.8, .2)``, in every coordinate."""


def moments():
    """Of the chain's marginals, from the recursion ``x ← x - ε (x - m) / (2 σ²) + √ε ξ``."""
    slope, found = 1.0 - 0.5 * STEP / VARIANCE, [(START_MEAN, START_VARIANCE)]
    for _ in range(N_STEPS):
        mean, variance = found[-1]
        found.append((MEAN + slope * (mean - MEAN), slope**2 * variance + STEP))
    return slope, found


def linear_context(dimension, reverse, n=100_000):
    refiner = Langevin(STEP, max_displacement=None)
    target = Target(lambda x: 0.5 * (x - MEAN).square().sum(-1) / VARIANCE)
    # of another seed than the chain's: the same numbers twice would be no noise
    noise = th.randn(10, n // 10, dimension, dtype=th.float64, generator=th.Generator().manual_seed(99))
    start = START_MEAN + math.sqrt(START_VARIANCE) * noise
    log_prob = th.distributions.Normal(START_MEAN, math.sqrt(START_VARIANCE)).log_prob(start).sum(-1)
    return context_of(refiner, target, start, log_prob, N_STEPS, reverse)


def optimal_reverse(x, remaining):
    """What takes ``x_{k+1} + drift(x_{k+1})`` to ``E[x_k | x_{k+1}]``, by the formula of conditional Gaussians."""
    step = round((1.0 - remaining) * (N_STEPS - 1))
    slope, marginals = moments()
    (mean, variance), (next_mean, next_variance) = marginals[step : step + 2]
    expected = mean + slope * variance / next_variance * (x - next_mean)
    drift = -0.5 * STEP * (x - MEAN) / VARIANCE
    return (expected - x - drift) / math.sqrt(STEP)


@pytest.mark.parametrize("dimension", [1, 2])
def test_with_the_best_reverse_drift_the_gap_of_a_linear_chain_is_that_of_the_variances(dimension):
    """The true reverse of a step has the variance ``ε v_k / v_{k+1}``, the kernel ``ε``: Gaussians of the same mean."""
    th.manual_seed(0)
    found = PathEntropy().estimate(linear_context(dimension, optimal_reverse))
    _, marginals = moments()
    ratios = np.array([before / after for (_, before), (_, after) in itertools.pairwise(marginals)])
    gap = 0.5 * dimension * (ratios - 1.0 - np.log(ratios)).sum()
    exact = 0.5 * dimension * math.log(2.0 * math.pi * math.e * marginals[-1][1])
    assert gap > 0.1
    assert -found.log_prob.mean().item() == pytest.approx(exact - gap, abs=0.01 * dimension)
    # the regression's loss there: half the noise that is left, which is the conditional variance over the kernel's
    assert found.loss.item() == pytest.approx(0.5 * dimension * ratios.sum(), abs=0.01 * dimension)


def test_any_other_reverse_drift_gives_a_lower_bound():
    th.manual_seed(0)
    best = PathEntropy().estimate(linear_context(1, optimal_reverse))
    for factor in (0.0, 0.7, 1.3):
        other = PathEntropy().estimate(linear_context(1, lambda x, t, factor=factor: factor * optimal_reverse(x, t)))
        assert other.log_prob.mean() > best.log_prob.mean() + 0.01
        assert other.loss > best.loss + 0.01
        # a bound's gap is the loss's, nat for nat
        th.testing.assert_close(other.log_prob.mean() - best.log_prob.mean(), other.loss - best.loss, rtol=0, atol=0.02)


CHAINS = {
    "defaults": {},
    "long steps": dict(refiner_kwargs=dict(step_size=0.3)),
    "many steps": dict(refiner_steps=10),
}


@pytest.mark.parametrize("chain", sorted(CHAINS))
@pytest.mark.parametrize("dimension", [1, 2])
def test_it_bounds_the_entropy_of_the_chain_and_learning_closes_the_gap(chain, dimension):
    refinement = refinement_of("langevin", n_particles=1, **CHAINS[chain])
    th.manual_seed(0)
    untaught = Setting(refinement, dimension, None, FieldNetwork(N_FEATURES, dimension, dimension, [8]))
    truth = knn_entropy_on_box(untaught.latent(20_000))
    lowest, _ = untaught.estimate(PathEntropy(), 20_000, 5000)
    taught, _ = taught_reverse(refinement, dimension, PathEntropy())
    bound, _ = taught.estimate(PathEntropy(), 20_000, 5000)
    assert lowest < truth - 0.01
    assert truth - 0.1 < bound < truth + 0.02, "a lower bound but for the noise"
    assert bound - lowest > 0.01


def test_the_bound_has_no_graph_and_the_loss_has_the_reverse_drift_s_only():
    context = Setting(refinement_of("langevin", n_particles=1), 2, None, FieldNetwork(N_FEATURES, 2, 2, [8]))
    with th.no_grad():
        found = PathEntropy(3).estimate(context.context(7))
    assert found.log_prob.shape == (7, 1) and not found.log_prob.requires_grad
    found.loss.backward()
    assert any(parameter.grad.abs().sum() > 0.0 for parameter in context.reverse.parameters())


@pytest.mark.parametrize("n_chains, error", [(0, ValueError), (1.0, TypeError), (True, TypeError)])
def test_the_number_of_chains_is_checked(n_chains, error):
    with pytest.raises(error, match="n_chains must be"):
        PathEntropy(n_chains)
