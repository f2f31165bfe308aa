"""What a potential learns from at some observations, piece by piece."""

import math

import pytest
import torch as th
from torch import nn

from sb3_energy.networks import PotentialNetwork
from sb3_energy.pgac.action_candidates import ActionCandidates, base_actions, uniform_actions
from sb3_energy.pgac.potential_learner import (
    chain_ends,
    guarded_divergence_loss,
    transport_gradients,
    weighted_transport_loss,
)
from sb3_energy.pgac.potential_training import PotentialTraining
from sb3_energy.refinement.bases import Gaussian
from tests.laws import grid, total_variation

DOUBLE = th.float64


def network(features_dim=3, action_dim=2):
    th.manual_seed(0)
    found = PotentialNetwork(features_dim, action_dim, [16]).double()
    nn.init.normal_(found.network[-1].weight)
    return found


def draws(*shape, seed=0):
    return th.randn(*shape, dtype=DOUBLE, generator=th.Generator().manual_seed(seed))


def gradients_of(found, loss):
    return th.autograd.grad(loss, list(found.parameters()), materialize_grads=True)


def test_a_weight_of_0_ignores_its_observation_exactly(monkeypatch):
    """Bit by bit, but for the number that the mean divides by: 4 in place of 3, where the times are the same."""
    found, features, starts, ends = network(), draws(4, 3), draws(4, 5, 2, seed=1), draws(4, 5, 2, seed=2)
    times = th.rand(4, 5, dtype=DOUBLE)
    kept = [0, 1, 3]

    def gradients(index, weights):
        monkeypatch.setattr(th, "rand", lambda *args, **kwargs: times[index])
        loss = weighted_transport_loss(found, features[index], starts[index], ends[index], weights)
        return gradients_of(found, loss * len(index))

    weights = th.tensor([0.5, 2.0, 0.0, 1.0], dtype=DOUBLE)
    of_all, without = gradients([0, 1, 2, 3], weights), gradients(kept, weights[kept])
    for mine, theirs in zip(of_all, without, strict=True):
        th.testing.assert_close(mine, theirs, rtol=1e-14, atol=1e-15)
    ends[2] += 7.0  # nothing that is asked of it matters
    for mine, theirs in zip(of_all, gradients([0, 1, 2, 3], weights), strict=True):
        assert th.equal(mine, theirs)
    weights[2] = 0.1
    assert not th.equal(of_all[0], gradients([0, 1, 2, 3], weights)[0])


def test_weights_are_each_observation_s_own(monkeypatch):
    """Before the mean over observations, not after it."""
    found, features, starts, ends = network(), draws(2, 3), draws(2, 5, 2, seed=1), draws(2, 5, 2, seed=2)
    times = th.rand(2, 5, dtype=DOUBLE)

    def loss(index, weights=None):
        monkeypatch.setattr(th, "rand", lambda *args, **kwargs: times[index])
        return weighted_transport_loss(found, features[index], starts[index], ends[index], weights)

    first, second = loss([0]), loss([1])
    both = loss([0, 1], th.tensor([3.0, 0.5], dtype=DOUBLE))
    th.testing.assert_close(both, (3.0 * first + 0.5 * second) / 2.0)
    th.testing.assert_close(loss([0, 1]), loss([0, 1], th.ones(2, dtype=DOUBLE)))


def test_ways_are_learned_from_and_not_changed():
    found, features = network(), draws(4, 3)
    starts, ends = draws(4, 5, 2, seed=1), draws(4, 5, 2, seed=2)
    gradients, from_where, to_where = transport_gradients(found, features, starts, ends)
    assert gradients.requires_grad and th.equal(from_where, starts)
    assert th.equal(to_where.sum(1).sort().values, ends.sum(1).sort().values) or to_where.shape == ends.shape
    th.testing.assert_close(to_where.sort(1).values, ends.sort(1).values)
    assert (to_where - starts).square().sum() < (ends - starts).square().sum()


def test_the_best_candidates_are_those_of_highest_value():
    actions, q_values = draws(3, 9, 2), draws(3, 9, seed=1)
    best = ActionCandidates(actions, q_values, th.zeros(3, 9)).best(4)
    for row in range(3):
        order = q_values[row].argsort(descending=True)[:4]
        assert th.equal(best[row], actions[row, order])


def test_drawn_candidates_follow_the_gibbs_density_wherever_they_were_proposed():
    """Two equal modes, one of which has nine tenths of the candidates: by Q alone it would have nearly all the positives."""
    generator = th.Generator().manual_seed(0)
    crowded = th.rand(4000, 50, 1, generator=generator) < 0.9
    actions = th.where(crowded, 0.5, -0.5) + 0.2 * (th.rand(4000, 50, 1, generator=generator) - 0.5)
    log_prob = th.where(actions > 0.0, 0.9, 0.1).log().squeeze(-1)
    candidates = ActionCandidates(actions, th.zeros(4000, 50), log_prob)
    th.manual_seed(0)
    assert (candidates.draw(1, 1.0) > 0.0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    several = candidates.draw(6, 1.0)
    assert all(len(row.unique()) == 6 for row in several[:50]), "without replacement"
    assert 0.4 < (several > 0.0).float().mean() < 0.65
    better = ActionCandidates(actions, th.where(actions.squeeze(-1) > 0.0, 1.0, 0.0), log_prob)
    odds = 1.0 / (1.0 + math.exp(-1.0 / 0.5))
    assert (better.draw(1, 0.5) > 0.0).float().mean().item() == pytest.approx(odds, abs=0.03)


def test_starts_of_the_base_and_of_the_box():
    base = Gaussian(th.full((2, 1), 5.0), th.full((2, 1), 0.1))
    assert (base_actions(base, 100, 0.0) > 0.99).all()
    half = base_actions(base, 100, 0.5)
    assert half.shape == (2, 100, 1) and (half[:, :50] > 0.99).all() and (half[:, 50:] < 0.99).float().mean() > 0.9
    even = uniform_actions(draws(3, 2), 4000)
    assert even.shape == (3, 4000, 2) and even.dtype == DOUBLE and even.abs().max() <= 1.0
    assert even.mean().abs() < 0.03 and even.std().item() == pytest.approx(3**-0.5, abs=0.02)


@pytest.mark.parametrize("temperature", [0.4, 1.5])
def test_long_chains_draw_from_the_potential(temperature):
    """Between walls that reflect. The features are the observation's own: each has another law."""
    found = network(1, 1).float()
    with th.no_grad():
        found.network[-1].weight *= 2.0
    features = th.tensor([[-1.0], [2.0]])
    training = PotentialTraining(negative_steps=150, negative_step=0.01 / temperature)
    th.manual_seed(1)
    ends = chain_ends(found, features, uniform_actions(features.unsqueeze(1), 20_000), temperature, training)
    assert ends.abs().max() <= 1.0 and not ends.requires_grad
    for row in range(2):

        def energy(a, row=row):
            with th.no_grad():
                return found(features[row : row + 1].expand(len(a), -1), a.float()).double() / temperature

        assert total_variation(ends[row], energy, 20) < 0.05
        assert (-energy(grid(50, 1)[0])).softmax(1).std() > 1e-3, "which is not flat"
    assert total_variation(ends[0], energy, 20) > 0.1


def test_a_potential_costs_where_it_is_beyond_its_bound():
    found, features = network(), draws(4, 3)
    good, bad = draws(4, 5, 2, seed=1), draws(4, 6, 2, seed=2)
    v_good, v_bad = found(features, good), found(features, bad)
    plain = (v_good.mean(1) - v_bad.mean(1)).mean() / 0.5
    largest = th.cat([v_good, v_bad], dim=1).abs().max().item() / 0.5
    th.testing.assert_close(guarded_divergence_loss(found, features, good, bad, 0.5, 1.01 * largest), plain)
    excess = (th.cat([v_good, v_bad], dim=1).abs() / 0.5 - 0.1).relu().square().mean()
    th.testing.assert_close(guarded_divergence_loss(found, features, good, bad, 0.5, 0.1), plain + excess)
    assert excess > 0.1


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        (dict(n_observations=0), ValueError, "n_observations must be at least 1, got 0"),
        (dict(n_candidates=2.5), TypeError, "n_candidates must be an integer, got 2.5"),
        (dict(n_refined=-1), ValueError, "n_refined must be at least 0, got -1"),
        (dict(top_k=40, n_candidates=79), ValueError, "n_candidates must be at least 2 top_k = 80, got 79"),
        (dict(top_k=3, n_refined=4, n_candidates=24), ValueError, "n_candidates must leave 20 .*, got 24 with n_refined=4"),
        (dict(n_negatives=5), ValueError, "n_negatives must be even, got 5"),
        (dict(negative_steps=0), ValueError, "negative_steps must be at least 1, got 0"),
        (dict(negative_step=0.0), ValueError, "negative_step must be above 0, got 0.0"),
        (dict(negative_step=None), TypeError, "negative_step must be a number, got None"),
        (dict(max_energy="high"), TypeError, "max_energy must be a number, got 'high'"),
        (dict(largest_weight=-1), ValueError, "largest_weight must be above 0, got -1"),
        (dict(expectile=0.4), ValueError, r"expectile must lie in \[0.5, 1\), got 0.4"),
        (dict(expectile=1.0), ValueError, r"expectile must lie in \[0.5, 1\), got 1.0"),
        (dict(expectile=None), TypeError, "expectile must be a number, got None"),
    ],
    ids=str,
)
def test_wrong_arguments(kwargs, error, match):
    with pytest.raises(error, match=f"^{match}$"):
        PotentialTraining(**kwargs)
