"""Losses: pure functions of tensors, which optimise nothing."""

from sb3_energy.losses.actor_critic import actor_loss, critic_loss, distillation_loss, soft_td_target, temperature_loss
from sb3_energy.losses.prefix import prefix_loss, soft_marginal

__all__ = [
    "actor_loss",
    "critic_loss",
    "distillation_loss",
    "prefix_loss",
    "soft_marginal",
    "soft_td_target",
    "temperature_loss",
]
