"""Predictions and soft returns, against a computation by definition."""

import math

import numpy as np
import pytest

from sb3_energy.training.return_tracker import ReturnTracker, compare

GAMMA = 0.9


def by_definition(episode, gamma, truncated):
    """``r_t + Σ_k γ^k (r_{t+k} + bonus_{t+k})`` for each step, term by term, and the means of both columns."""
    returns = []
    for t in range(len(episode)):
        total = 0.0
        for k in range(len(episode) - t):
            q_value, reward, bonus = episode[t + k]
            last = t + k == len(episode) - 1
            paid = q_value if last and truncated else reward
            total += gamma**k * (paid + (bonus if k > 0 else 0.0))
        returns.append(total)
    return np.mean([step[0] for step in episode]), np.mean(returns)


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("length", [1, 2, 17])
def test_comparison(length, truncated):
    episode = [tuple(row) for row in np.random.default_rng(length).normal(size=(length, 3))]
    assert compare(episode, GAMMA, truncated) == pytest.approx(by_definition(episode, GAMMA, truncated))


def test_a_perfect_critic_is_not_wrong():
    """Constant reward and bonus for ever: Q = r + γ (bonus + Q). A time limit must not look like a mistake."""
    q_value = (1.0 + GAMMA * 0.5) / (1.0 - GAMMA)
    result = compare([(q_value, 1.0, 0.5)] * 30, GAMMA, truncated=True)
    assert result.q_value == pytest.approx(result.discounted_return)
    ends = [(sum(GAMMA**k * (1.0 + 0.5 * (k > 0)) for k in range(n)), 1.0, 0.5) for n in range(12, 0, -1)]
    result = compare(ends, GAMMA, truncated=False)
    assert result.q_value == pytest.approx(result.discounted_return)


def test_several_environments_with_episodes_of_their_own():
    rng = np.random.default_rng(0)
    tracker = ReturnTracker(3, GAMMA)
    episodes, expected, found = [[], [], []], [], []
    for _ in range(60):
        q_values, rewards, bonus = rng.normal(size=3), rng.normal(size=3), rng.normal()
        dones = rng.random(3) < 0.2
        truncated = [bool(flag) for flag in rng.random(3) < 0.5]
        tracker.predict(q_values, bonus)
        found += tracker.observe(rewards, dones, truncated)
        for index in range(3):
            episodes[index].append((q_values[index], rewards[index], bonus))
            if dones[index]:
                expected.append(by_definition(episodes[index], GAMMA, truncated[index]))
                episodes[index] = []
    assert len(found) == len(expected) > 10
    assert np.allclose(found, expected)


def test_only_steps_with_predictions_count():
    """Before learning starts nobody predicts; a prediction holds for one step."""
    tracker = ReturnTracker(1, GAMMA)
    one, yes, no = np.ones(1), np.array([True]), np.array([False])
    assert tracker.observe(one, yes, [False]) == []
    assert tracker.observe(one, no, [False]) == []
    tracker.predict(np.array([5.0]), bonus=0.0)
    assert tracker.observe(one, no, [False]) == []
    (comparison,) = tracker.observe(one, yes, [False])
    assert comparison == (5.0, 1.0)
    assert all(math.isfinite(value) for value in comparison)


def test_an_end_is_no_time_limit():
    tracker = ReturnTracker(2, GAMMA)
    tracker.predict(np.array([5.0, 7.0]), bonus=0.3)
    ended, cut_off = tracker.observe(np.array([1.0, 2.0]), np.array([True, True]), [False, True])
    assert ended == (5.0, 1.0) and cut_off == (7.0, 7.0)
