"""The spread of Q, which makes a guidance free of scales."""

import pytest
import torch as th

from sb3_energy.pgac.q_scale import SMALLEST_SPREAD, QScale

EVEN = th.linspace(0.0, 1.0, 1001).repeat(3, 1)  # from the 5th to the 95th percentile: .9


def after(*batches, decay=0.9):
    scale = QScale(decay=decay)
    for q_values in batches:
        scale.update(q_values)
    return scale.spread.item()


def test_the_first_update_counts_in_full():
    assert QScale().spread.item() == 1.0
    assert after(100.0 * EVEN) == pytest.approx(90.0)


def test_it_is_the_corrected_running_mean():
    """As Adam's: ``Σ (1 - β) β^(n-i) x_i / (1 - β^n)``."""
    batches = [1.0 * EVEN, 4.0 * EVEN, 2.0 * EVEN]
    weights = [0.1 * 0.9 ** (2 - i) / (1.0 - 0.9**3) for i in range(3)]
    assert sum(weights) == pytest.approx(1.0)
    expected = sum(weight * 0.9 * scale for weight, scale in zip(weights, (1.0, 4.0, 2.0), strict=True))
    assert after(*batches) == pytest.approx(expected)


def test_it_follows_and_forgets():
    assert after(*[1.0 * EVEN] * 5, *[100.0 * EVEN] * 200) == pytest.approx(90.0, rel=1e-3)


def test_it_is_of_each_observation_s_actions():
    """How far apart observations are does not count, nor do a few single actions."""
    assert after(EVEN + 1000.0 * th.arange(3.0).unsqueeze(1)) == pytest.approx(0.9, rel=1e-3)
    outliers = EVEN.clone()
    outliers[:, -5:] = 1e6
    assert after(outliers) == pytest.approx(0.9, rel=0.01)


def test_rewards_times_100_are_a_spread_times_100():
    batches = [th.randn(4, 50, generator=th.Generator().manual_seed(seed)) for seed in range(5)]
    assert after(*[100.0 * batch - 7.0 for batch in batches]) == pytest.approx(100.0 * after(*batches), rel=1e-5)


def test_a_flat_critic_divides_by_no_zero():
    assert after(th.ones(3, 50)) == pytest.approx(SMALLEST_SPREAD)


def test_it_is_saved_with_how_often_it_was_updated():
    first, second, batch = QScale(decay=0.9), QScale(decay=0.9), 3.0 * EVEN
    first.update(EVEN)
    second.load_state_dict(first.state_dict())
    for scale in (first, second):
        scale.update(batch)
    assert th.equal(first.spread, second.spread) and first.n_updates.item() == 2


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, float("nan")])
def test_wrong_decay(decay):
    with pytest.raises(ValueError, match=rf"^decay must lie in \(0, 1\), got {decay}$"):
        QScale(decay=decay)


@pytest.mark.parametrize("n_dimensions", [2, 6, 17, 38])
def test_the_width_of_a_dimension_does_not_depend_on_their_number(n_dimensions):
    """Draws of ``exp(Q / (ε spread))`` for ``Q = -Σ a²``: each dimension's standard deviation, by quadrature."""

    def width(d):
        scale, generator = QScale(d), th.Generator().manual_seed(0)
        scale.update(-(2.0 * th.rand(8, 20_000, d, generator=generator) - 1.0).square().sum(-1))
        a = th.linspace(-1.0, 1.0, 2001)
        weights = (-a.square() / (0.1 * scale.spread)).softmax(0)
        return (weights * a.square()).sum().sqrt().item()

    assert width(n_dimensions) == pytest.approx(width(1), rel=0.1)
