"""Published settings as keyword arguments."""

from collections.abc import Mapping
from typing import Any

from sb3_energy.schedules import Cosine

FLASH_SAC: Mapping[str, Any] = dict(
    learning_rate=Cosine(3e-4, 1.5e-4),
    learning_starts=10_000,
    batch_size=512,
    tau=0.01,
    ent_coef="auto_0.01_scaled",
    target_entropy="auto_0.15",
    exploration="held_noise",
    actor_delay=2,
    joint_batch=True,
    policy_kwargs=dict(
        backbone="flash",
        net_arch=dict(pi=[128, 128], qf=[256, 256]),
        log_std_range=(-10.0, 2.0),
        critic="categorical",
        target_aggregate="min",
        value_scale="auto",
    ),
)
"""What differs from SAC's defaults; categorical critics have 101 bins from -5 to 5 in units of the scale by default."""


def flash_sac_kwargs(**changes: Any) -> dict[str, Any]:
    """
    The settings of FlashSAC (arXiv 2604.04539), for :class:`sb3_energy.EnergySAC` and :class:`sb3_energy.PGAC`. FlashSAC takes
    its Gaussian's actions, ``policy_kwargs=dict(refiner="none")``; without that, actions are refined as by default.

    :param changes: keyword arguments that are added or take the place of the paper's; ``policy_kwargs`` is merged key by key
    :return: keyword arguments of the algorithm
    :raises TypeError: if ``policy_kwargs`` is no dict
    """
    policy_kwargs = changes.pop("policy_kwargs", None) or {}
    if not isinstance(policy_kwargs, Mapping):
        raise TypeError(f"policy_kwargs must be a dict of arguments by name or None, got {policy_kwargs!r}")
    return {**FLASH_SAC, **changes, "policy_kwargs": {**FLASH_SAC["policy_kwargs"], **policy_kwargs}}
