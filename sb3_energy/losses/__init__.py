"""Losses: pure functions of tensors, which optimise nothing."""

from sb3_energy.losses.actor_critic import actor_loss, critic_loss, distillation_loss, soft_td_target, temperature_loss
from sb3_energy.losses.flow import (
    adaptively_weighted,
    average_divergence_targets,
    draw_times,
    flow_matching_loss,
    mean_flow_targets,
    posterior_velocity,
)
from sb3_energy.losses.prefix import prefix_loss, soft_marginal

__all__ = [
    "actor_loss",
    "adaptively_weighted",
    "average_divergence_targets",
    "critic_loss",
    "distillation_loss",
    "draw_times",
    "flow_matching_loss",
    "mean_flow_targets",
    "posterior_velocity",
    "prefix_loss",
    "soft_marginal",
    "soft_td_target",
    "temperature_loss",
]
