"""The scale of the return is that of all discounted returns so far."""

import copy

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_energy.training.return_scale import LARGEST_SCALE, SMALLEST_SCALE, ReturnScale
from tests.fingerprints import Target

GAMMA = 0.9


def steps(n=60, n_envs=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(1.0, 3.0, size=(n, n_envs)).astype(np.float32), rng.random((n, n_envs)) < 0.15


def all_returns(rewards, dones):
    """In the plainest way: each is a sum over its episode's rewards so far."""
    found = []
    for column, ends in zip(rewards.T.astype(float), dones.T, strict=True):
        start = 0
        for t in range(len(column)):
            found.append(sum(GAMMA ** (t - k) * column[k] for k in range(start, t + 1)))
            start = t + 1 if ends[t] else start
    return np.array(found)


def observed(rewards, dones):
    scale = ReturnScale(rewards.shape[1])
    for reward, done in zip(rewards, dones, strict=True):
        scale.observe(reward, done, GAMMA)
    return scale


@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("rare", [False, True])
def test_it_is_the_largest_of_std_and_a_fifth_of_the_largest_return(n_envs, rare):
    rewards, dones = steps(400, n_envs=n_envs)
    if rare:
        rewards[17, 0] = -400.0
    else:
        rewards += np.where(rewards > 1.0, 9.0, -9.0)  # two heaps, of which the standard deviation is the larger one
    scale, returns = observed(rewards, dones), all_returns(rewards, dones)
    std, largest = returns.std(), np.abs(returns).max() / 5.0
    assert (largest > std) == rare
    assert scale.sigma() == pytest.approx(max(std, largest), rel=1e-9)
    assert scale.count == rewards.size


def test_it_is_what_vec_normalize_divides_by():
    """But for its first pseudo-count of 1e-4."""
    env = VecNormalize(DummyVecEnv([Target] * 3), gamma=GAMMA, norm_obs=False)
    env.seed(0)
    env.reset()
    scale = ReturnScale(3)
    for _ in range(400):
        _, _, dones, _ = env.step(np.zeros((3, 2), np.float32))
        scale.observe(env.get_original_reward(), dones, GAMMA)
    std = scale.statistics[2].div(scale.count).sqrt().item()
    assert std == pytest.approx(float(np.sqrt(env.ret_rms.var)), rel=1e-3)


def test_it_scales_with_rewards():
    rewards, dones = steps()
    once, exact, other = (observed(factor * rewards, dones).sigma() for factor in (1.0, 128.0, 100.0))
    assert exact == 128.0 * once, "bit by bit"
    assert other == pytest.approx(100.0 * once, rel=1e-6)


def test_bounds():
    zeros = observed(*(np.zeros((5, 2), kind) for kind in (np.float32, bool)))
    assert ReturnScale(2).sigma() == zeros.sigma() == 0.0
    assert zeros.sigma(0.3) == 0.3
    rewards, dones = steps()
    assert observed(rewards, dones).sigma(100.0) == 100.0
    assert observed(1e-37 * rewards, dones).sigma() == SMALLEST_SCALE
    assert observed(1e36 * rewards, dones).sigma() == LARGEST_SCALE
    constant = observed(np.full((1, 1), 3.0, np.float32), np.zeros((1, 1), bool))
    assert constant.sigma() == pytest.approx(0.6)


def test_an_interrupted_episode_is_forgotten_and_its_returns_are_not():
    rewards, dones = steps()
    scale = observed(rewards, dones)
    before = scale.statistics.clone()
    scale.reset(2)
    assert th.equal(scale.statistics, before)
    scale.observe(np.array([1e4, 0.0], np.float32), np.zeros(2, bool), GAMMA)
    assert scale.statistics[3] == 1e4


def test_stored_steps_leave_running_episodes_alone():
    rewards, dones = steps()
    stored, split = ReturnScale(3), observed(rewards[:10], dones[:10])
    stored.observe_episodes(rewards, dones, GAMMA)
    assert th.equal(stored.statistics, observed(rewards, dones).statistics)
    split.observe_episodes(*steps(seed=1), GAMMA)
    alone = observed(rewards[:10], dones[:10])
    for scale in (split, alone):
        scale.observe(rewards[10], dones[10], GAMMA)
    assert split._running == alone._running


def test_state():
    scale = observed(*steps())
    scale.learned_from_rewards = True
    other = ReturnScale(3)
    other.load_state_dict(scale.state_dict())
    assert other.sigma() == scale.sigma() and other.count == scale.count and other.learned_from_rewards
    twin = copy.deepcopy(scale)
    twin.observe(np.full(3, 1e3, np.float32), np.zeros(3, bool), GAMMA)
    assert twin.sigma() > scale.sigma() == other.sigma()
    assert observed(*steps()).statistics.dtype == th.float64
