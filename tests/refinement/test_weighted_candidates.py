"""Weighted candidates: whatever they come from, their weights are those of the Gibbs distribution."""

import math

import pytest
import torch as th

from sb3_energy.policies.heads import HeadTraining
from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.weighted_candidates import CandidateSettings, Kernels, draw_candidates
from tests.laws import bin_probabilities, grid, log_normalizer, modes_energy

MEANS, WEIGHTS = [[0.6, 0.6], [-0.6, 0.6], [0.6, -0.6], [-0.6, -0.6]], [1.0, 2.0, 2.0, 4.0]
FOUR_MODES = modes_energy(MEANS, 0.3, WEIGHTS)
NARROW = modes_energy(MEANS, 0.08, WEIGHTS)  # the base, which sits beside one of them, misses most of it
BATCHES, BINS = 20_000, 20
each_combination = pytest.mark.parametrize(
    "replayed, refined_fraction", [(False, 0.0), (True, 0.0), (False, 0.25), (True, 0.25), (True, 0.5)]
)


def draw(energy, replayed, refined_fraction, n=16, batches=BATCHES, seed=0):
    generator = th.Generator().manual_seed(seed)
    base = Gaussian(th.full((batches, 2), -0.5), th.full((batches, 2), 0.4))
    actions = 1.9 * th.rand((batches, 2), generator=generator) - 0.95
    settings = CandidateSettings(n_candidates=n, refined_fraction=refined_fraction)
    return draw_candidates(
        base, energy, replayed=th.atanh(actions) if replayed else None, settings=settings, generator=generator
    )


@each_combination
@pytest.mark.parametrize("energy", [FOUR_MODES, NARROW], ids=["wide", "narrow"])
def test_the_mean_weight_is_the_normaliser(energy, replayed, refined_fraction):
    """Kernels that depend on what is weighed with them miss it by 16 to 80 percent."""
    log_weights = draw(energy, replayed, refined_fraction).log_weights.double()
    assert log_weights.shape == (BATCHES, 16)
    ratios = (log_weights - log_normalizer(energy, 2)).exp().mean(1)
    error = ratios.std().item() / math.sqrt(BATCHES)
    assert error < 0.03
    assert ratios.mean().item() == pytest.approx(1.0, abs=4.0 * error)


@each_combination
def test_weighted_candidates_follow_the_gibbs_density(replayed, refined_fraction):
    candidates = draw(FOUR_MODES, replayed, refined_fraction)
    actions, weights = th.tanh(candidates.particles.double()), candidates.log_weights.double().exp()
    cells = ((actions + 1.0) / 2.0 * BINS).long().clamp(0, BINS - 1)
    mass = th.zeros(BINS**2, dtype=th.float64).index_add(
        0, (cells[..., 0] * BINS + cells[..., 1]).flatten(), weights.flatten()
    )
    truth = bin_probabilities(FOUR_MODES, 2, BINS)
    assert 0.5 * (mass / mass.sum() - truth).abs().sum() < 0.025
    points, _ = grid(400, 2)
    mean = ((-FOUR_MODES(points)).softmax(1).unsqueeze(-1) * points).sum(1)[0]
    found = (weights.unsqueeze(-1) * actions).mean((0, 1)) / weights.mean()
    th.testing.assert_close(found, mean, rtol=0, atol=0.01)
    normalised = (weights / weights.sum(1, keepdim=True)).unsqueeze(-1)
    assert ((normalised * actions).sum(1).mean(0) - mean).abs().max() < 0.03  # what normalising 16 of them leaves


def test_halves_exchange_their_kernels_with_nobody_else():
    numbers = th.arange(6.0).reshape(6, 1, 1)
    exchanged = Kernels(numbers, numbers + 10.0).of_the_other_half()
    assert exchanged.means.flatten().tolist() == [1, 0, 3, 2, 5, 4]
    assert th.equal(exchanged.std, exchanged.means + 10.0)


def test_refined_ones_count_where_the_base_is_far_too_wide():
    """Six coordinates and a narrow mode: what the resampled are moved to is worth more than as many further proposals."""

    def energy(a):
        return 0.5 * ((a - 0.3) / 0.15).square().sum(-1)

    def size(refined_fraction):
        base = Gaussian(th.full((4000, 6), 0.31), th.ones(4000, 6))
        settings = CandidateSettings(n_candidates=32, refined_fraction=refined_fraction)
        weights = draw_candidates(
            base, energy, replayed=None, settings=settings, generator=th.Generator().manual_seed(0)
        ).log_weights.softmax(1)
        return (1.0 / weights.square().sum(1)).mean().item()

    assert size(0.25) > 1.15 * size(0.0)


def test_the_kernel_around_what_was_replayed_finds_what_the_base_does_not():
    def energy(a):
        return 0.5 * ((a - 0.9) / 0.02).square().sum(-1)

    base = Gaussian(th.full((500, 3), -1.0), th.full((500, 3), 0.2))
    action = th.atanh(th.full((500, 3), 0.9))

    def lowest(replayed):
        found = draw_candidates(
            base, energy, replayed=replayed, settings=CandidateSettings(), generator=th.Generator().manual_seed(0)
        )
        return energy(th.tanh(found.particles)).amin(1).median()

    assert lowest(action) < 0.2 * lowest(None)
    none = draw_candidates(
        base, energy, replayed=action, settings=CandidateSettings(replay_std=None), generator=th.Generator().manual_seed(0)
    )
    without = draw_candidates(
        base, energy, replayed=None, settings=CandidateSettings(), generator=th.Generator().manual_seed(0)
    )
    assert th.equal(none.particles, without.particles)


def test_they_carry_no_graph_and_the_generator_decides():
    mean = th.zeros(3, 2, requires_grad=True)
    scale = th.ones(2, requires_grad=True)
    before = th.random.get_rng_state()

    def found(seed):
        base = Gaussian(mean, th.ones(3, 2))
        energy = lambda a: (scale * a.square()).sum(-1)  # noqa: E731
        return draw_candidates(
            base, energy, replayed=th.zeros(3, 2), settings=CandidateSettings(), generator=th.Generator().manual_seed(seed)
        )

    first, again, other = found(1), found(1), found(2)
    assert not first.particles.requires_grad and not first.log_weights.requires_grad
    assert mean.grad is None and scale.grad is None
    assert th.equal(first.particles, again.particles) and th.equal(first.log_weights, again.log_weights)
    assert not th.equal(first.particles, other.particles)
    assert th.equal(before, th.random.get_rng_state())


ERRORS = [
    (dict(n_candidates=6), ValueError, "n_candidates must be at least 8, got 6"),
    (dict(n_candidates=9), ValueError, "n_candidates must be even, got 9"),
    (dict(n_candidates=16.0), TypeError, "n_candidates must be an integer, got 16.0"),
    (dict(refined_fraction=1.0), ValueError, r"refined_fraction must lie in \[0, 1\), got 1.0"),
    (dict(refined_fraction=-0.1), ValueError, r"refined_fraction must lie in \[0, 1\), got -0.1"),
    (dict(refined_fraction=math.nan), ValueError, r"refined_fraction must lie in \[0, 1\), got nan"),
    (dict(refined_fraction="half"), TypeError, "refined_fraction must be a number, got 'half'"),
    (dict(refined_fraction=True), TypeError, "refined_fraction must be a number, got True"),
    (dict(replay_std=0.0), ValueError, "replay_std must be above 0, got 0.0"),
    (dict(replay_std="wide"), TypeError, "replay_std must be a number or None, got 'wide'"),
    (dict(step_size=None), TypeError, "step_size must be a number, got None"),
    (dict(step_size=-1.0), ValueError, "step_size must be above 0, got -1.0"),
    (dict(n_points=0), ValueError, "n_points must be at least 1, got 0"),
    (dict(n_points=2.0), TypeError, "n_points must be an integer, got 2.0"),
    (
        dict(refined_fraction=0.9, n_candidates=16),
        ValueError,
        "refined_fraction must leave 2 proposals .* n_candidates=16, got 0.9",
    ),
    (dict(refined_fraction=0.5, n_candidates=8), ValueError, "refined_fraction must leave 2 .* n_candidates=8, got 0.5"),
]


@pytest.mark.parametrize("kwargs, error, match", ERRORS, ids=lambda value: str(value)[:40])
def test_settings_are_refused_in_one_sentence(kwargs, error, match):
    with pytest.raises(error, match=match) as caught:
        HeadTraining(**kwargs)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
