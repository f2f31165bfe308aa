"""Step sizes that look for the acceptance they are to have."""

from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_energy.checks import check_part
from sb3_energy.refiners.gradient_start import GradientStart
from sb3_energy.schedules import value_at
from sb3_energy.types import RefinerInfo, RefinerState, Target, Tick

GAIN_POWER = 0.6
"""Gains fall as ``(k + 1)^-0.6``: slow enough to reach any step size, fast enough to settle (Robbins and Monro 1951)."""


class TunedGradients(NamedTuple):
    """
    What a chain whose step size is tuned carries on.

    :param gradients: ``(B, N, *E)`` at the particles
    :param log_scale: ``(B, 1)`` logarithm of what the step size is multiplied by
    """

    gradients: th.Tensor
    log_scale: th.Tensor


class TunedStart(GradientStart):
    """
    Of chains with a Metropolis test: with a ``target_acceptance`` each observation has a step size of its own, which is
    multiplied by ``exp(γ_k (mean acceptance - target))`` after step ``k`` of the first half and then left as it is.
    Global adaptive scaling (Andrieu and Thoms 2008, algorithm 4), with the mean over the observation's particles.
    """

    step_size: float | Schedule
    target_acceptance: float | None

    def init(self, particles: th.Tensor, target: Target) -> RefinerState:
        """
        :param particles: ``(B, N, *E)``
        :param target: what to draw from
        :return: particles, energies, and in ``extra`` the gradients, together with the scale where one is tuned
        """
        state = super().init(particles, target)
        if self.target_acceptance is None:
            return state
        return state._replace(extra=TunedGradients(state.extra, state.energies.new_zeros(len(particles), 1)))

    def _untuned(self, state: RefinerState, tick: Tick) -> tuple[RefinerState, float | th.Tensor]:
        """
        :param state: as a step gets it
        :param tick: which step of how many
        :return: the state with the gradients alone in ``extra``; the step size, a number or ``(B, 1)``
        """
        step_size = value_at(self.step_size, tick.remaining)
        if self.target_acceptance is None:
            return state, step_size
        return state._replace(extra=state.extra.gradients), step_size * state.extra.log_scale.exp()

    def _tuned(self, before: Any, state: RefinerState, info: RefinerInfo, tick: Tick) -> RefinerState:
        """
        :param before: the ``extra`` that the step got
        :param state: after the step, with the gradients alone in ``extra``
        :param info: with the probabilities of acceptance
        :param tick: which step of how many
        :return: the state as the next step gets it
        """
        if self.target_acceptance is None:
            return state
        log_scale = before.log_scale
        if 2 * (tick.step + 1) <= tick.n_steps:
            surplus = info.acceptance.mean(dim=1, keepdim=True) - self.target_acceptance
            log_scale = log_scale + (tick.step + 1) ** -GAIN_POWER * surplus
        return state._replace(extra=TunedGradients(state.extra, log_scale))


def check_target_acceptance(value: float | None) -> None:
    """
    :param value: a number between 0 and 1, or ``None``
    :raises ValueError: if it lies outside
    :raises TypeError: if it is neither
    """
    if value is None:
        return
    check_part("target_acceptance", value)
    if value == 1.0:
        raise ValueError("target_acceptance must be below 1, which no step reaches, got 1.0")


def over_event(step_size: float | th.Tensor, particles: th.Tensor) -> float | th.Tensor:
    """
    :param step_size: a number or ``(B, 1)``
    :param particles: ``(B, N, *E)``
    :return: the number, or ``(B, 1, *1)``, which multiplies particles
    """
    if not isinstance(step_size, th.Tensor):
        return step_size
    return step_size.reshape(step_size.shape + (1,) * (particles.dim() - 2))
