"""The sandwich around the entropy of Langevin chains: its definition, its limits, and the chains' own entropy inside of it."""

import math

import pytest
import torch as th
from torch.distributions import Categorical as Weights
from torch.distributions import Independent, MixtureSameFamily, Normal

from sb3_energy.entropy import MixtureEntropy
from sb3_energy.refiners import Langevin
from sb3_energy.stats import gaussian_log_prob
from sb3_energy.types import Target
from tests.entropy.policies import ENERGIES, Setting, context_of, flat, refinement_of
from tests.laws import entropy, knn_entropy_on_box

FLAT = Target(flat)


def found(particles, step_size=0.1, n_steps=1, n_chains=32):
    context = context_of(Langevin(step_size), FLAT, particles, None, n_steps)
    return MixtureEntropy(n_chains).estimate(context)


def mixture(means, std):
    kernels = Independent(Normal(means, th.as_tensor(std).expand_as(means)), 1)
    return MixtureSameFamily(Weights(th.ones(len(means))), kernels)


def test_the_bounds_are_those_of_mixtures_of_gaussians():
    """Against torch's own distributions, one chain at a time."""
    means, std = 2.0 * th.randn(1, 4, 2, dtype=th.float64, generator=th.Generator().manual_seed(0)), math.sqrt(0.1)
    th.manual_seed(1)
    estimate = found(means)
    th.manual_seed(1)
    ends = (means + std * th.randn_like(means))[0]
    lower = -mixture(means[0], std).log_prob(ends).mean()
    upper = []
    for i in range(4):
        others = th.cat([means[0, :i], means[0, i + 1 :]])
        wide = (0.1 + others.var(0, unbiased=False) * 4 ** (-2.0 / 6.0)).sqrt()
        both = th.stack([mixture(others, std).log_prob(ends[i]), mixture(others, wide).log_prob(ends[i])])
        upper.append(-(both.logsumexp(0) - math.log(2.0)))
    th.testing.assert_close(estimate.records["entropy_lower"], lower.reshape(1))
    th.testing.assert_close(estimate.records["entropy_upper"], th.stack(upper).mean().reshape(1))
    middle = 0.5 * (estimate.records["entropy_lower"] + estimate.records["entropy_upper"])
    th.testing.assert_close(-estimate.log_prob[:, 0], middle)


@pytest.mark.parametrize("dimension", [1, 2])
def test_chains_from_one_point_have_the_entropy_of_the_noise(dimension):
    estimate = found(th.zeros(2000, 32, dimension, dtype=th.float64), 0.3)
    exact = 0.5 * dimension * math.log(2.0 * math.pi * math.e * 0.3)
    for bound in estimate.records.values():
        assert bound.mean().item() == pytest.approx(exact, abs=0.01)
    th.testing.assert_close(estimate.records["entropy_lower"], estimate.records["entropy_upper"])


SETTINGS = {
    "defaults": {},
    "16 particles": dict(n_particles=16),
    "one particle": dict(n_particles=1),
    "long steps": dict(n_particles=16, refiner_kwargs=dict(step_size=0.3)),
    "a step": dict(n_particles=16, refiner_steps=1),
    "a trust region": dict(n_particles=16, trust_region=0.1),
}


@pytest.mark.parametrize("setting", sorted(SETTINGS))
@pytest.mark.parametrize("dimension", [1, 2])
def test_the_bounds_hold_the_entropy_of_the_chains_between_them(setting, dimension):
    th.manual_seed(0)
    policy = Setting(refinement_of("langevin", **SETTINGS[setting]), dimension)
    truth = knn_entropy_on_box(policy.latent(20_000))
    estimate, records = policy.estimate(MixtureEntropy(), 300, chunk=100)
    assert records["entropy_lower"] < truth < records["entropy_upper"]
    assert records["entropy_upper"] - records["entropy_lower"] < (0.5 if dimension == 1 else 2.5)
    assert estimate == pytest.approx(truth, abs=0.1 if dimension == 1 else 0.6)


@pytest.mark.parametrize("dimension", [1, 2])
def test_the_bounds_hold_the_target_s_entropy_where_the_chain_has_converged(dimension):
    th.manual_seed(0)
    settings = dict(n_particles=64, refiner_steps=20, refiner_kwargs=dict(step_size=0.1))
    policy = Setting(refinement_of("langevin", **settings), dimension)
    estimate, records = policy.estimate(MixtureEntropy(128), 60, chunk=20)
    truth = entropy(ENERGIES[dimension], dimension)
    assert records["entropy_lower"] < truth < records["entropy_upper"]
    assert estimate == pytest.approx(truth, abs=0.12)


def test_more_chains_bring_the_bounds_together():
    th.manual_seed(0)
    policy = Setting(refinement_of("langevin", n_particles=4), 2)
    bounds = [policy.estimate(MixtureEntropy(m), 200, chunk=100)[1] for m in (4, 16, 64)]
    lower, upper = ([records[name] for records in bounds] for name in ("entropy_lower", "entropy_upper"))
    assert lower == sorted(lower) and upper == sorted(upper, reverse=True)


def test_observations_have_bounds_of_their_own():
    close, apart = th.zeros(1, 8, 2), 5.0 * th.randn(1, 8, 2, generator=th.Generator().manual_seed(0))
    records = found(th.cat([close, apart])).records
    width = records["entropy_upper"] - records["entropy_lower"]
    assert width[0].abs() < 1e-5 and width[1] > 1.0


def test_chains_that_are_far_apart_have_a_finite_bound():
    upper = found(1e6 * th.arange(8.0).reshape(1, 8, 1)).records["entropy_upper"]
    # half of it is as wide as where they are: about the entropy of that
    assert math.log(1e6) < upper.item() < math.log(1e8)


def test_an_infinite_bound_is_never_returned():
    particles = th.zeros(2, 3, 1)
    particles[1] = th.tensor([[0.0], [1e30], [-1e30]])
    with pytest.raises(
        FloatingPointError, match=r"'mixture' found chains that end where no other does.*'soft_value'"
    ) as caught:
        found(particles)
    assert "\n" not in str(caught.value) and "try more n_chains" in str(caught.value)


def test_the_density_of_a_gaussian_is_torch_s():
    x, mean = th.randn(2, 5, 3, dtype=th.float64)
    std = th.rand(5, 3, dtype=th.float64) + 0.1
    th.testing.assert_close(gaussian_log_prob(x, mean, std), Normal(mean, std).log_prob(x).sum(-1))
    th.testing.assert_close(gaussian_log_prob(x, mean, 0.3), Normal(mean, 0.3).log_prob(x).sum(-1))


@pytest.mark.parametrize("n_chains, error", [(1, ValueError), (0, ValueError), (2.0, TypeError), (True, TypeError)])
def test_the_number_of_chains_is_checked(n_chains, error):
    with pytest.raises(error, match="n_chains must be"):
        MixtureEntropy(n_chains)
