import math
import warnings

import pytest
import torch as th

from sb3_energy.energies.transforms import log_tanh_jacobian
from sb3_energy.entropy import BaseEntropy, SoftValueEntropy, soft_value
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.proposals import draw_proposals
from sb3_energy.stats import effective_sample_size
from sb3_energy.types import EntropyContext
from tests.laws import entropy, log_normalizer, modes_energy

ENERGIES = {
    1: modes_energy([[0.6], [-0.5]], 0.25),
    2: modes_energy([[0.6, 0.6], [-0.6, 0.6], [0.6, -0.6], [-0.6, -0.6]], 0.5),
}


def proposals_on_box(dimension, std, uniform_fraction, repetitions=1000, n=256):
    base = Gaussian(th.zeros(repetitions, dimension), th.full((repetitions, dimension), std))
    particles, log_prob = draw_proposals(base, n, uniform_fraction, generator=th.Generator().manual_seed(0))
    return ENERGIES[dimension](th.tanh(particles)), log_prob - log_tanh_jacobian(particles)


@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize("std", [0.3, 1.0])
def test_soft_value_and_entropy_match_quadrature(dimension, std):
    estimate = soft_value(*proposals_on_box(dimension, std, 0.5))
    assert estimate.log_normalizer.mean().item() == pytest.approx(log_normalizer(ENERGIES[dimension], dimension), abs=0.01)
    assert estimate.entropy.mean().item() == pytest.approx(entropy(ENERGIES[dimension], dimension), abs=0.01)
    assert (estimate.effective_sample_size > 20).all()


@pytest.mark.parametrize("dimension", [1, 2])
def test_plain_proposals_of_a_narrow_base_do_not(dimension):
    estimate = soft_value(*proposals_on_box(dimension, 0.3, 0.0))
    assert log_normalizer(ENERGIES[dimension], dimension) - estimate.log_normalizer.mean().item() > 0.05


def test_soft_value_is_a_lower_bound_that_tightens():
    exact = log_normalizer(ENERGIES[2], 2)
    means = [soft_value(*proposals_on_box(2, 0.3, 0.5, 2000, n)).log_normalizer.mean().item() for n in (2, 8, 64)]
    assert means[0] < means[1] < means[2] < exact + 0.005


def test_the_entropy_depends_on_the_space():
    # uniform on the box: log 2 a dimension there, 2 - log 2 before the squash
    particles, log_prob = draw_proposals(
        Gaussian(th.zeros(1000, 1), th.ones(1000, 1)), 256, 0.5, generator=th.Generator().manual_seed(0)
    )
    jacobian = log_tanh_jacobian(particles)
    on_box = soft_value(th.zeros_like(log_prob), log_prob - jacobian)
    before = soft_value(-jacobian, log_prob)
    assert on_box.entropy.mean().item() == pytest.approx(math.log(2.0), abs=0.01)
    assert before.entropy.mean().item() == pytest.approx(2.0 - math.log(2.0), abs=0.01)
    th.testing.assert_close(on_box.log_normalizer, before.log_normalizer)


def test_proposals_from_the_target_itself_are_exact():
    energies = th.randn(3, 10, dtype=th.float64)
    estimate = soft_value(energies, -energies - 1.5)
    th.testing.assert_close(estimate.log_normalizer, th.full((3,), 1.5, dtype=th.float64))
    th.testing.assert_close(estimate.effective_sample_size, th.full((3,), 10.0, dtype=th.float64))
    th.testing.assert_close(estimate.entropy, 1.5 + energies.mean(1))


def test_effective_sample_size_is_closed_form():
    weights = th.tensor([[1.0, 1.0, 1.0, 1.0], [3.0, 1.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0]], dtype=th.float64)
    expected = th.tensor([4.0, 16.0 / 10.0, 1.0], dtype=th.float64)
    th.testing.assert_close(effective_sample_size(weights.log()), expected)
    th.testing.assert_close(soft_value(-weights.log(), th.zeros_like(weights)).effective_sample_size, expected)
    th.testing.assert_close(effective_sample_size(weights.log() + 1000.0), expected)


def test_a_forbidden_proposal_has_no_weight_and_spoils_nothing():
    energies = th.tensor([[0.0, math.inf, 0.0, math.inf]])
    estimate = soft_value(energies, th.full((1, 4), -math.log(2.0)))
    assert estimate.log_normalizer.item() == pytest.approx(0.0, abs=1e-6)  # half of a box of length 2
    assert estimate.entropy.item() == pytest.approx(0.0, abs=1e-6)
    assert not th.isfinite(soft_value(th.full((1, 4), math.nan), th.zeros(1, 4)).entropy).any()


def test_shapes_must_agree():
    for other in (th.zeros(2, 4), th.zeros(3), th.zeros(2, 3, 1)):
        with pytest.raises(ValueError, match=r"energies and proposal_log_prob must both be \(B, N\), got"):
            soft_value(th.zeros(2, 3), other)


def test_the_estimators_answer_in_sac_s_shape():
    energies, log_prob = proposals_on_box(2, 0.3, 0.5, repetitions=5, n=12)
    asked = []

    def propose(n, uniform_fraction):
        asked.append((n, uniform_fraction))
        return energies, log_prob

    context = EntropyContext(th.randn(5, 1), propose, lambda n_chains: pytest.fail("no chains are needed"))
    assert BaseEntropy().estimate(context) == (context.base_log_prob, None, None) and asked == []
    found, exact = SoftValueEntropy(12, 0.25).estimate(context), soft_value(energies, log_prob)
    assert asked == [(12, 0.25)] and found.log_prob.shape == (5, 1)
    th.testing.assert_close(found.log_prob[:, 0], -exact.entropy)
    size = exact.effective_sample_size
    th.testing.assert_close(
        found.records, dict(entropy_effective_sample_size=size, entropy_n_proposals=th.full_like(size, 12.0))
    )


def chosen(weights_of, batch=6):
    """What the estimator finds where proposals have weights of a known law, and how many it asked for at a time."""
    asked, generator = [], th.Generator().manual_seed(0)

    def propose(n, uniform_fraction):
        asked.append(n)
        return -weights_of(batch, n, generator).log(), th.zeros(batch, n)

    return SoftValueEntropy().estimate(EntropyContext(th.zeros(batch, 1), propose, lambda n_chains: None)), asked


def test_the_number_of_proposals_is_chosen_by_the_effective_sample_size():
    equal, asked = chosen(lambda batch, n, generator: th.ones(batch, n))
    assert asked == [16] and (equal.records["entropy_n_proposals"] == 16.0).all()

    def one_in_eight(batch, n, generator):  # of 64 proposals 8 have a weight
        return (th.arange(n) % 8 == 0).float().expand(batch, n)

    found, asked = chosen(one_in_eight)
    assert asked == [16, 16, 32] and (found.records["entropy_n_proposals"] == 64.0).all()
    th.testing.assert_close(found.records["entropy_effective_sample_size"], th.full((6,), 8.0))


def test_few_good_proposals_are_warned_of_once():
    def one_at_all(batch, n, generator):
        return (th.arange(n) == 0).float().expand(batch, n)

    estimator, asked = SoftValueEntropy(), []

    def propose(n, uniform_fraction):
        asked.append(n)
        weights = one_at_all(3, n, None) if len(asked) == 1 else th.zeros(3, n)
        return -weights.log(), th.zeros(3, n)

    context = EntropyContext(th.zeros(3, 1), propose, lambda n_chains: None)
    with pytest.warns(UserWarning, match="effective sample size is below 4 .* try entropy_estimator='smc'"):
        found = estimator.estimate(context)
    assert sum(asked) == 256 and (found.records["entropy_n_proposals"] == 256.0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator.estimate(context)
    with pytest.warns(UserWarning, match="is below 4 .* try entropy_estimator='smc'"):
        asked.clear()
        SoftValueEntropy(20).estimate(context)
    assert asked == [20]
    with warnings.catch_warnings():  # of a few, half are as good as can be asked
        warnings.simplefilter("error")
        SoftValueEntropy(2).estimate(context)


def test_a_choice_reads_values_and_a_number_does_not():
    assert SoftValueEntropy().reads_values and not SoftValueEntropy(16).reads_values


@pytest.mark.parametrize("n_proposals", [0, -1, 2.0, True])
def test_the_number_of_proposals_is_checked(n_proposals):
    with pytest.raises((TypeError, ValueError), match=r"n_proposals must be (an integer|at least 1), got"):
        SoftValueEntropy(n_proposals=n_proposals)


@pytest.mark.parametrize("uniform_fraction", [-0.1, 1.0, float("nan")])
def test_the_uniform_share_is_checked(uniform_fraction):
    with pytest.raises(ValueError, match=r"uniform_fraction must lie in \[0, 1\), got"):
        SoftValueEntropy(uniform_fraction=uniform_fraction)
