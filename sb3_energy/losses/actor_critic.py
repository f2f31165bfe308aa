"""SAC's losses as functions of tensors.

The order of the operations is SB3's, so that an update made of them gives the same bits (Haarnoja et al. 2018b).
"""

from collections.abc import Sequence

import torch as th
from torch.nn import functional as F


def temperature_loss(log_ent_coef: th.Tensor, log_prob: th.Tensor, target_entropy: float) -> th.Tensor:
    """
    ``-log α (log π + target entropy)`` (equation 18, on the logarithm of the coefficient as in softlearning).

    :param log_ent_coef: ``(1,)``, learned
    :param log_prob: ``(B, 1)``, held fixed
    :param target_entropy: in nats
    :return: scalar
    """
    return -(log_ent_coef * (log_prob + target_entropy).detach()).mean()


def soft_td_target(
    rewards: th.Tensor,
    dones: th.Tensor,
    discounts: th.Tensor | float,
    next_q_values: th.Tensor,
    next_log_prob: th.Tensor,
    ent_coef: th.Tensor,
) -> th.Tensor:
    """
    ``r + (1 - done) γ (Q(s', a') - α log π(a'|s'))`` (equations 2 and 3).

    :param rewards: ``(B, 1)``
    :param dones: ``(B, 1)``
    :param discounts: ``γ``, or ``(B, 1)`` from an n-step buffer
    :param next_q_values: ``(B, 1)``, or ``(B, n_quantiles)``
    :param next_log_prob: ``(B, 1)``
    :param ent_coef: ``(1,)`` or scalar
    :return: like ``next_q_values``
    """
    next_values = next_q_values - ent_coef * next_log_prob
    return rewards + (1 - dones) * discounts * next_values


def critic_loss(q_values: Sequence[th.Tensor], target_q_values: th.Tensor) -> th.Tensor:
    """
    ``½ Σ_i mean (Q_i - target)²`` (equation 5).

    :param q_values: ``(B, 1)`` for each critic
    :param target_q_values: ``(B, 1)``, held fixed
    :return: scalar
    """
    return 0.5 * sum((F.mse_loss(q, target_q_values) for q in q_values), start=th.zeros((), device=target_q_values.device))


def actor_loss(log_prob: th.Tensor, q_values: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
    """
    ``mean(α log π(a|s) - Q(s, a))`` at a reparametrised action (equation 9).

    :param log_prob: ``(B, 1)``
    :param q_values: ``(B, 1)``
    :param ent_coef: ``(1,)`` or scalar
    :return: scalar
    """
    return (ent_coef * log_prob - q_values).mean()


def distillation_loss(log_prob: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
    """
    ``-α mean log π_θ(a_refined|s)``: the forward KL divergence from the refined policy to the base, up to a constant.
    The factor ``α`` gives it the units of SAC's actor loss, which is ``α`` times the reverse one.

    :param log_prob: ``(B,)`` or ``(B, 1)`` log-density of the base at refined actions, which are held fixed
    :param ent_coef: ``(1,)`` or scalar
    :return: scalar
    """
    return -(ent_coef * log_prob).mean()
