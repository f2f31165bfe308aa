import inspect
import re

import pytest
import torch as th
from stable_baselines3 import SAC
from torch.nn import functional as F

from sb3_energy.losses import actor_loss, critic_loss, distillation_loss, soft_td_target, temperature_loss

B = 64


def column(seed, positive=False):
    values = 3.0 * th.randn(B, 1, generator=th.Generator().manual_seed(seed))
    return values.abs() if positive else values


def test_the_formulas_below_are_still_sb3_s():
    source = re.sub(r"\s+", " ", inspect.getsource(SAC.train))
    for line in (
        "ent_coef_loss = -(self.log_ent_coef * (log_prob + self.target_entropy).detach()).mean()",
        "next_q_values = next_q_values - ent_coef * next_log_prob.reshape(-1, 1)",
        "target_q_values = replay_data.rewards + (1 - replay_data.dones) * discounts * next_q_values",
        "critic_loss = 0.5 * sum(F.mse_loss(current_q, target_q_values) for current_q in current_q_values)",
        "actor_loss = (ent_coef * log_prob - min_qf_pi).mean()",
    ):
        assert line in source


def test_temperature_loss_is_sb3_s_to_the_bit():
    log_ent_coef = th.tensor([-0.7], requires_grad=True)
    log_prob = column(0).requires_grad_(True)
    loss = temperature_loss(log_ent_coef, log_prob, -3.0)
    assert th.equal(loss, -(log_ent_coef * (log_prob + -3.0).detach()).mean())
    loss.backward()
    assert log_prob.grad is None
    th.testing.assert_close(log_ent_coef.grad, -(log_prob.detach().mean() - 3.0).reshape(1))


def test_temperature_rises_where_the_entropy_is_too_low():
    log_ent_coef = th.zeros(1, requires_grad=True)
    temperature_loss(log_ent_coef, th.full((B, 1), 5.0), -3.0).backward()  # entropy -5, below -3
    assert log_ent_coef.grad < 0.0


@pytest.mark.parametrize("discounts", [0.99, column(9, positive=True)])
def test_soft_target_is_sb3_s_to_the_bit(discounts):
    rewards, next_q_values, next_log_prob, ent_coef = column(0), column(1), column(2), th.tensor([0.3])
    dones = (column(3) > 0.0).float()
    expected = next_q_values - ent_coef * next_log_prob.reshape(-1, 1)
    expected = rewards + (1 - dones) * discounts * expected
    target = soft_td_target(rewards, dones, discounts, next_q_values, next_log_prob, ent_coef)
    assert th.equal(target, expected)
    assert th.equal(target[dones == 1.0], rewards[dones == 1.0])


def test_soft_target_takes_quantiles():
    quantiles = th.randn(B, 7)
    target = soft_td_target(column(0), th.zeros(B, 1), 0.9, quantiles, column(2), th.tensor(0.3))
    th.testing.assert_close(target, column(0) + 0.9 * (quantiles - 0.3 * column(2)))


@pytest.mark.parametrize("n_critics", [1, 2, 5])
def test_critic_loss_is_sb3_s_to_the_bit(n_critics):
    q_values = [column(i).requires_grad_(True) for i in range(n_critics)]
    target = column(10)
    loss = critic_loss(q_values, target)
    assert th.equal(loss, 0.5 * sum(F.mse_loss(q, target) for q in q_values))
    loss.backward()
    for q in q_values:
        th.testing.assert_close(q.grad, (q.detach() - target) / B)


def test_actor_loss_is_sb3_s_to_the_bit():
    log_prob, q_values = column(0).requires_grad_(True), column(1).requires_grad_(True)
    ent_coef = th.tensor([0.3])
    loss = actor_loss(log_prob, q_values, ent_coef)
    assert th.equal(loss, (ent_coef * log_prob - q_values).mean())
    loss.backward()
    th.testing.assert_close(log_prob.grad, th.full((B, 1), 0.3 / B))
    th.testing.assert_close(q_values.grad, th.full((B, 1), -1.0 / B))


@pytest.mark.parametrize("shape", [(B,), (B, 1)])
def test_distillation_is_maximum_likelihood_in_units_of_the_temperature(shape):
    log_prob = column(0).reshape(shape).requires_grad_(True)
    loss = distillation_loss(log_prob, th.tensor([0.3]))
    th.testing.assert_close(loss, -0.3 * log_prob.mean())
    loss.backward()
    th.testing.assert_close(log_prob.grad, th.full(shape, -0.3 / B))


def test_distillation_of_a_gaussian_is_least_where_the_moments_agree():
    draws = 0.5 + 2.0 * th.randn(1000, dtype=th.float64, generator=th.Generator().manual_seed(0))
    mean = draws.mean().requires_grad_(True)
    std = draws.std(correction=0).requires_grad_(True)
    distillation_loss(th.distributions.Normal(mean, std).log_prob(draws), th.tensor(1.0)).backward()
    assert abs(mean.grad.item()) < 1e-10 and abs(std.grad.item()) < 1e-10


def test_the_losses_are_differentiable():
    log_prob, q = column(0).double()[:4].requires_grad_(True), column(1).double()[:4].requires_grad_(True)
    ent_coef = th.tensor(0.3, dtype=th.float64)
    assert th.autograd.gradcheck(lambda a, b: actor_loss(a, b, ent_coef), (log_prob, q))
    assert th.autograd.gradcheck(lambda a, b: critic_loss([a, b], th.ones_like(a)), (log_prob, q))
    assert th.autograd.gradcheck(lambda a: distillation_loss(a, ent_coef), (log_prob,))
