"""Chains of a potential that is known, where their laws are: Gaussians, a posterior, a box cut out of a Gaussian."""

import math

import pytest
import torch as th

from sb3_energy import EnergyMatching
from sb3_energy.offline.energy_matching.sampling import PotentialSampler
from tests.laws import total_variation

TEMPERATURE = 0.2


def sampler(**kwargs):
    return PotentialSampler(EnergyMatching(temperature=TEMPERATURE, device="cpu", **kwargs).settings)


def generator():
    return th.Generator().manual_seed(0)


def bowl(mean, std):
    """``-ε log`` of a Gaussian."""
    return lambda x: 0.5 * TEMPERATURE * ((x - mean) / std).square().sum(-1)


def two_modes(x):
    """``-ε log (.7 N(-1, .2²) + .3 N(1, .2²))`` in the first coordinate, a standard normal in the others."""
    first = [math.log(w) - 0.5 * ((x[..., 0] - m) / 0.2).square() for w, m in ((0.7, -1.0), (0.3, 1.0))]
    return -TEMPERATURE * (th.stack(first).logsumexp(0) - 0.5 * x[..., 1:].square().sum(-1))


@pytest.mark.parametrize("std", [0.25, 0.5])
def test_chains_from_data_have_the_temperature_of_the_potential(std):
    """Unadjusted steps of ``h = 2 ε Δt`` have the variance ``σ² / (1 - h / (4 σ²))``."""
    chains = sampler(n_steps=200, sampling_time=4.0)
    ends = chains.moved(bowl(0.3, std), th.zeros(1, 20_000, 2), generator(), at_data=True)
    step = 2.0 * TEMPERATURE * 4.0 / 200
    expected = std / math.sqrt(1.0 - step / (4.0 * std**2))
    assert ends.mean().item() == pytest.approx(0.3, abs=0.02)
    assert ends.std().item() == pytest.approx(expected, rel=0.02)


def test_chains_from_the_base_end_at_the_temperature_of_the_potential():
    chains = sampler(n_steps=400, sampling_time=8.0, transport_time=0.5)
    starts = chains.starts(1, 20_000, 1, generator())
    ends = chains.moved(bowl(0.3, 0.4), starts, generator())
    # The noise rises to ε at the end: the law lags behind it by a relaxation, σ² / ε = .8 of a ramp of 7.5
    assert ends.std().item() == pytest.approx(0.4, rel=0.08) and ends.std() < 0.4


@pytest.mark.parametrize("seen, noise", [(0.4, 0.5), (-1.0, 0.25)])
def test_a_posterior_of_a_gaussian(seen, noise):
    """Prior N(.5, .8²) in both coordinates, ``y = x_1 + x_2 + noise ξ``: the posterior is Gaussian."""
    prior_mean, prior_std = 0.5, 0.8
    chains = sampler(n_particles=16, sampling_time=6.0, n_steps=150)

    def observed(x):
        return 0.5 * ((x.sum(-1) - seen) / noise).square()

    found = chains.conditioned(bowl(prior_mean, prior_std), observed, th.empty(1, 2), 4000, generator())[0]
    precision = th.eye(2) / prior_std**2 + th.ones(2, 2) / noise**2
    covariance = precision.inverse()
    mean = covariance @ (th.full((2,), prior_mean / prior_std**2) + th.full((2,), seen / noise**2))
    th.testing.assert_close(found.mean(0), mean, rtol=0, atol=0.05)
    th.testing.assert_close(found.T.cov(), covariance, rtol=0, atol=0.06)
    assert covariance[0, 1] < -0.2, "which the prior has not"


@pytest.mark.parametrize("seen", [0.1, -0.1])
def test_a_posterior_of_two_modes_has_their_shares(seen):
    """
    ``y = x_1 + .6 ξ``. Each mode's weight is its prior's times ``N(y; m, .2² + .6²)``. Chains from the base find the modes by
    halves, so the draws without the observation are made ones here.
    """
    noise, n = 0.6, 4000
    chains = sampler(n_particles=8)

    def observed(x):
        return 0.5 * ((x[..., 0] - seen) / noise).square()

    weights = [w * math.exp(-0.5 * (seen - m) ** 2 / (0.04 + noise**2)) for w, m in ((0.7, -1.0), (0.3, 1.0))]
    share = weights[0] / sum(weights)
    assert abs(share - 0.7) > 0.05
    signs = th.where(th.rand(1, 8 * n, 1, generator=generator()) < 0.7, -1.0, 1.0)
    exact = th.cat([signs + 0.2 * th.randn(1, 8 * n, 1), th.randn(1, 8 * n, 1)], dim=2)
    moved = PotentialSampler.moved
    try:
        PotentialSampler.moved = lambda *args, **kwargs: exact
        found = chains.conditioned(two_modes, observed, th.empty(1, 2), n, generator())[0]
    finally:
        PotentialSampler.moved = moved
    left = found[:, 0] < 0.0
    assert left.float().mean().item() == pytest.approx(share, abs=0.03)
    variance = 1.0 / (1.0 / 0.04 + 1.0 / noise**2)
    assert found[left, 0].mean().item() == pytest.approx(variance * (-1.0 / 0.04 + seen / noise**2), abs=0.02)
    assert found[left, 0].std().item() == pytest.approx(math.sqrt(variance), rel=0.05)
    assert found[:, 1].std().item() == pytest.approx(1.0, rel=0.05)


def test_a_posterior_stays_in_its_box():
    """A uniform prior on the box and a Gaussian observation beyond its wall."""
    chains = sampler(box="reflect", base="uniform", n_particles=8)

    def observed(x):
        return 0.5 * ((x[..., 0] - 1.2) / 0.5).square()

    found = chains.conditioned(lambda x: 0.0 * x.sum(-1), observed, th.empty(1, 1), 20_000, generator())[0]
    assert found.abs().max() <= 1.0 and total_variation(found, observed, 20) < 0.05
    assert total_variation(found, lambda x: 2.0 * observed(x), 20) > 0.1


@pytest.mark.parametrize("dim", [1, 3])
def test_without_noise_the_mode_of_the_largest_share_is_taken_and_not_the_deepest(dim):
    """Around -1, to where two thirds of the base go, and around 2, which is five ε deeper."""

    def potential(x):
        near, far = 2.0 * (x[..., 0] + 1.0).square(), 2.0 * (x[..., 0] - 2.0).square() - 5.0 * TEMPERATURE
        return th.minimum(near, far) + 2.0 * x[..., 1:].square().sum(-1)

    chains, like = sampler(), th.empty(2, dim)
    ends = chains.moved(potential, chains.starts(1, 2000, dim, generator()), generator())[0]
    assert 0.55 < (ends[:, 0] < 0.5).float().mean() < 0.75
    modes = th.zeros(2, 1, dim)
    modes[0, 0, 0], modes[1, 0, 0] = -1.0, 2.0
    assert potential(modes[1:]) < potential(modes[:1]) - 4.0 * TEMPERATURE
    found = chains.most_common(potential, like)
    assert found.shape == (2, dim) and th.equal(found[0], found[1])
    th.testing.assert_close(found[0], modes[0, 0], rtol=0, atol=0.2)
    mirrored = chains.most_common(lambda x: potential(-x), like)
    th.testing.assert_close(mirrored[0], -modes[0, 0], rtol=0, atol=0.2)
