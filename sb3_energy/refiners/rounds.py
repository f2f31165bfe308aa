"""What the rounds of derivative-free optimisers are made of: a resampling and noise, with dice or without."""

from typing import Any

import torch as th

from sb3_energy.checks import check_bool, check_number, check_part
from sb3_energy.refiners.loop import importance_resample, systematic_resample
from sb3_energy.refiners.quasi import normal_quantiles


def check_rounds(noise_std: Any, noise_decay: Any, quasi_random: Any) -> None:
    """
    :param noise_std: a positive number
    :param noise_decay: a number in (0, 1]
    :param quasi_random: a bool
    :raises ValueError: if a number is out of range
    :raises TypeError: if something has the wrong type
    """
    check_number("noise_std", noise_std, strict=True)
    check_part("noise_decay", noise_decay)
    check_bool("quasi_random", quasi_random)


def resample(
    particles: th.Tensor, log_weights: th.Tensor, quasi_random: bool, generator: th.Generator | None
) -> tuple[th.Tensor, th.Tensor]:
    """
    :param particles: ``(B, N, *E)``
    :param log_weights: ``(B, N)``, up to a constant for each observation
    :param quasi_random: whether to take those at fixed quantiles of the weights in place of draws
    :param generator: source of the draws
    :return: as many particles, in proportion to their weights, and their indices ``(B, N)``
    """
    n = particles.shape[1]
    if quasi_random:
        return systematic_resample(particles, log_weights, n)
    return importance_resample(particles, log_weights, n, generator)


def standard_normal(like: th.Tensor, quasi_random: bool, generator: th.Generator | None) -> th.Tensor:
    """
    :param like: ``(B, N, *E)``, for shape, device and type
    :param quasi_random: whether to take fixed low-discrepancy quantiles in place of draws
    :param generator: source of the noise
    :return: ``(B, N, *E)``, or ``(1, N, *E)`` of quantiles
    """
    if quasi_random:
        return normal_quantiles(like.shape[1], like[:, 0])
    return th.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)
