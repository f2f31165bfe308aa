"""Losses: pure functions of tensors, which optimise nothing."""

from sb3_energy.losses.actor_critic import actor_loss, critic_loss, distillation_loss, soft_td_target, temperature_loss
from sb3_energy.losses.categorical import categorical_loss, categorical_projection
from sb3_energy.losses.contrastive import info_nce_loss, nce_loss, r_nce_loss
from sb3_energy.losses.descent import descent_loss, gradient_penalty
from sb3_energy.losses.energy_matching import (
    VALUE_WEIGHTS,
    contrastive_divergence_loss,
    expectile_loss,
    gradient_matching_loss,
    points_between,
    transport_loss,
    transport_pairs,
    value_weights,
)
from sb3_energy.losses.flow import (
    adaptively_weighted,
    average_divergence_targets,
    draw_times,
    flow_matching_loss,
    mean_flow_targets,
    posterior_velocity,
)
from sb3_energy.losses.prefix import prefix_loss, soft_marginal
from sb3_energy.losses.score_matching import (
    denoising_score_matching_loss,
    score_matching_loss,
    sliced_score_matching_loss,
)

__all__ = [
    "VALUE_WEIGHTS",
    "actor_loss",
    "adaptively_weighted",
    "average_divergence_targets",
    "categorical_loss",
    "categorical_projection",
    "contrastive_divergence_loss",
    "critic_loss",
    "denoising_score_matching_loss",
    "descent_loss",
    "distillation_loss",
    "draw_times",
    "expectile_loss",
    "flow_matching_loss",
    "gradient_matching_loss",
    "gradient_penalty",
    "info_nce_loss",
    "mean_flow_targets",
    "nce_loss",
    "points_between",
    "posterior_velocity",
    "prefix_loss",
    "r_nce_loss",
    "score_matching_loss",
    "sliced_score_matching_loss",
    "soft_marginal",
    "soft_td_target",
    "temperature_loss",
    "transport_loss",
    "transport_pairs",
    "value_weights",
]
