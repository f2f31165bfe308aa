"""The value of the best that the data does: between its mean and its best action."""

import pytest
import torch as th
from torch import nn

from sb3_energy.losses import value_weights
from sb3_energy.pgac.behaviour_critic import BehaviourCritic

ACTIONS = th.tensor([[-1.0], [0.0], [1.0]])
REWARDS = th.tensor([[1.0], [0.0], [4.0]])  # their mean is 1.67


def table(expectile, gamma=0.5, n_updates=600):
    """One state, three actions that were taken equally often, each followed by the same state."""
    th.manual_seed(0)
    critic = BehaviourCritic(1, 1, [32], nn.Tanh, expectile=expectile, tau=0.05)
    critic.make_optimizer(th.optim.Adam, lambda _: 1e-2)
    features, dones = th.ones(3, 1), th.zeros(3, 1)
    for _ in range(n_updates):
        loss = critic.loss(features, ACTIONS, REWARDS, dones, gamma, features)
        critic.optimizer.zero_grad()
        loss.backward()
        critic.optimizer.step()
        critic.follow()
    return critic, critic.v_net(features)[0].item()


def test_the_value_lies_between_the_mean_and_the_best():
    """V = e(R) + γ V with the expectile e(R) of the rewards: V = 2 e(R) for γ = 1/2."""
    values = {}
    for expectile, of_rewards in ((0.5, 5.0 / 3.0), (0.9, 3.3636)):  # .9 (4 - e) = .1 ((e - 1) + e)
        critic, values[expectile] = table(expectile)
        assert values[expectile] == pytest.approx(2.0 * of_rewards, rel=0.05)
        expected = REWARDS.squeeze(1) + 0.5 * values[expectile]
        found = critic.advantages(th.ones(3, 1), ACTIONS)
        th.testing.assert_close(found, expected - values[expectile], rtol=0.05, atol=0.15)
    assert 2.0 * 5.0 / 3.0 < values[0.9] < 2.0 * 4.0


def small(**kwargs):
    th.manual_seed(0)
    critic = BehaviourCritic(2, 1, [8], **kwargs)
    critic.make_optimizer(th.optim.Adam, lambda _: 1e-2)
    return critic


def batch(n=6):
    return th.randn(n, 2), th.randn(n, 1), th.randn(n, 1), th.zeros(n, 1), 0.9, th.randn(n, 2)


@pytest.mark.parametrize("backbone", ["plain", "layer_norm"])
def test_no_gradient_reaches_the_target(backbone):
    critic = small(backbone=backbone)
    critic.loss(*batch()).backward()
    assert all(parameter.grad is None for parameter in critic.q_net_target.parameters())
    assert all(parameter.grad is not None for net in (critic.q_net, critic.v_net) for parameter in net.parameters())
    optimised = {id(p) for group in critic.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for net in (critic.q_net, critic.v_net) for p in net.parameters()}


def test_q_does_not_learn_from_the_expectile_nor_v_from_the_target_s_error():
    """What a reward says reaches V over the target network alone, and later."""
    critic = small()
    features, actions, rewards, dones, gamma, following = batch()
    gradients = []
    for more in (0.0, 10.0):
        critic.zero_grad()
        critic.loss(features, actions, rewards + more, dones, gamma, following).backward()
        gradients.append([[p.grad.clone() for p in net.parameters()] for net in (critic.q_net, critic.v_net)])
    (q_before, v_before), (q_after, v_after) = gradients
    assert all(th.equal(a, b) for a, b in zip(v_before, v_after, strict=True))
    assert not th.equal(q_before[0], q_after[0])


def test_after_the_end_nothing_is_worth_anything():
    critic = small()
    features, actions, rewards, _, gamma, following = batch()
    losses = [critic.loss(features, actions, rewards, th.ones(6, 1), gamma, f) for f in (following, 5.0 * following)]
    assert th.equal(losses[0], losses[1])
    discounts = th.full((6, 1), 0.3)
    again = critic.loss(features, actions, rewards, th.zeros(6, 1), discounts, following)
    th.testing.assert_close(again, critic.loss(features, actions, rewards, th.zeros(6, 1), 0.3, following))


def test_the_target_follows():
    critic = small(tau=0.25)
    with th.no_grad():
        for parameter in critic.q_net.parameters():
            parameter += 1.0
    before = [p.clone() for p in critic.q_net_target.parameters()]
    critic.follow()
    for old, new in zip(before, critic.q_net_target.parameters(), strict=True):
        th.testing.assert_close(new, old + 0.25)


N_STATES, GAMMA = 6, 0.9


def chain(expectile):
    """
    A chain of states: +1 goes right, -1 goes left, 0 stays, and the right end pays. Values of the best behaviour among uniform
    actions, by iteration of the expectile's fixed point, and the features and actions of all transitions.
    """
    states, moves = th.arange(N_STATES).repeat_interleave(3), th.tensor([-1, 0, 1]).repeat(N_STATES)
    following = (states + moves).clamp(0, N_STATES - 1)
    rewards = (following == N_STATES - 1).float() - 0.1 * moves.abs()
    values = th.zeros(N_STATES)
    for _ in range(500):
        q_values = (rewards + GAMMA * values[following]).reshape(N_STATES, 3)
        for _ in range(100):
            error = q_values - values.unsqueeze(1)
            weight = th.where(error > 0.0, expectile, 1.0 - expectile)
            values = values + (weight * error).sum(1) / weight.sum(1)
    q_values = rewards + GAMMA * values[following]
    return th.eye(N_STATES), states, moves, following, rewards, values, q_values


@pytest.mark.parametrize("expectile", [0.7, 0.9])
def test_the_weight_says_better_action_and_not_bad_state(expectile):
    one_hot, states, moves, following, rewards, values, q_values = chain(expectile)
    th.manual_seed(0)
    critic = BehaviourCritic(N_STATES, 1, [64], nn.Tanh, expectile=expectile, tau=0.02)
    critic.make_optimizer(th.optim.Adam, lambda _: 3e-3)
    actions, dones = moves.float().unsqueeze(1), th.zeros(len(states), 1)
    for _ in range(3000):
        loss = critic.loss(one_hot[states], actions, rewards.unsqueeze(1), dones, GAMMA, one_hot[following])
        critic.optimizer.zero_grad()
        loss.backward()
        critic.optimizer.step()
        critic.follow()
    advantages = critic.advantages(one_hot[states], actions)
    weights = value_weights(advantages / advantages.square().mean().sqrt(), "exp")
    assert th.corrcoef(th.stack([weights, q_values - values[states]]))[0, 1] > 0.8
    assert th.corrcoef(th.stack([weights, values[states]]))[0, 1].abs() < 0.2
    assert values.std() > (q_values - values[states]).std(), "states differ more than actions do"
