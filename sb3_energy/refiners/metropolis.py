"""Chains with a Metropolis test: the test, and step sizes tuned to the acceptance."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.checks import check_part
from sb3_energy.refiners.loop import refuse_diverged
from sb3_energy.schedules import value_at
from sb3_energy.types import RefinerInfo, RefinerState, Target, Tick

GAIN_POWER = 0.6
"""Gains fall as ``(k + 1)^-0.6``: slow enough to reach any step size, fast enough to settle (Robbins and Monro 1951)."""


class TunedGradients(NamedTuple):
    """
    The ``extra`` of a chain whose step size is tuned.

    :param gradients: ``(B, N, *E)`` at the particles
    :param log_scale: ``(B, 1)`` logarithm of the factor of the step size
    """

    gradients: th.Tensor
    log_scale: th.Tensor


class MetropolisChain(ABC):
    """
    Steps that are proposed and then accepted or rejected, each particle alone, so that ``exp(-E)`` stays as it is: the test
    of Metropolis et al. (1953) and Hastings (1970).

    With a ``target_acceptance`` each observation has a step size of its own, which is multiplied by
    ``exp(γ_k (mean acceptance - target))`` after step ``k`` of the first half and then left as it is. Global adaptive scaling
    (Andrieu and Thoms 2008, algorithm 4), with the mean over the observation's particles.
    """

    step_size: float | Schedule
    target_acceptance: float | None

    @abstractmethod
    def propose(
        self, state: RefinerState, target: Target, step_size: float | th.Tensor, *, generator: th.Generator | None
    ) -> tuple[RefinerState, th.Tensor]:
        """
        Propose the next particles and compute the log of the Metropolis-Hastings ratio.

        :param state: with the gradients at its particles in ``extra``
        :param target: what to draw from
        :param step_size: a number, or ``(B, 1, *1)``
        :param generator: source of the noise
        :return: the state that is proposed, and ``(B, N)`` the logarithm of Hastings' ratio
        """

    def init(self, particles: th.Tensor, target: Target) -> RefinerState:
        """
        Evaluate the initial particles' energies and gradients.

        :param particles: ``(B, N, *E)``
        :param target: what to draw from
        :return: particles, energies, and in ``extra`` the gradients, together with the scale where one is tuned
        """
        energies, gradients = energy_and_grad(target.energy, particles)
        if self.target_acceptance is None:
            return RefinerState(particles, energies, gradients)
        return RefinerState(particles, energies, TunedGradients(gradients, energies.new_zeros(len(particles), 1)))

    def step(
        self, state: RefinerState, target: Target, tick: Tick, generator: th.Generator | None = None
    ) -> tuple[RefinerState, RefinerInfo]:
        """
        Take one Metropolis-Hastings step: propose, then accept or reject.

        :param state: with the gradients at its particles in ``extra``, and the scale of the step size if it is tuned
        :param target: what to draw from
        :param tick: which step of how many
        :param generator: source of the noise and of the test's draws
        :return: the next state; the probabilities of acceptance, and how far the particles went
        :raises FloatingPointError: if an energy that is proposed is NaN or minus infinity
        """
        step_size: Any = value_at(self.step_size, tick.remaining)
        log_scale, old = None, state
        if self.target_acceptance is not None:
            gradients, log_scale = state.extra
            old = state._replace(extra=gradients)
            step_size = _over_event(step_size * log_scale.exp(), like=state.particles)
        new, log_ratio = self.propose(old, target, step_size, generator=generator)
        accepted, probability = metropolis_test(self, tick, new.energies, log_ratio, generator)
        of_particles = _over_event(accepted, like=state.particles)
        particles = th.where(of_particles, new.particles, old.particles)
        extra: Any = th.where(of_particles, new.extra, old.extra)
        info = RefinerInfo.of_move(old.particles, particles, acceptance=probability)
        if log_scale is not None:
            extra = TunedGradients(extra, self._tuned(log_scale, info.acceptance, tick))
        return RefinerState(particles, th.where(accepted, new.energies, old.energies), extra), info

    def _tuned(self, log_scale: th.Tensor, acceptance: th.Tensor, tick: Tick) -> th.Tensor:
        assert self.target_acceptance is not None
        if 2 * (tick.step + 1) > tick.n_steps:
            return log_scale
        return log_scale + (tick.step + 1) ** -GAIN_POWER * (acceptance.mean(dim=1, keepdim=True) - self.target_acceptance)


def metropolis_test(
    refiner: Any, tick: Tick, energies: th.Tensor, log_ratio: th.Tensor, generator: th.Generator | None
) -> tuple[th.Tensor, th.Tensor]:
    """
    Accept or reject what is proposed (Metropolis et al. 1953; Hastings 1970). An infinite energy is never accepted.

    :param refiner: for the message
    :param tick: which step of how many, for the message
    :param energies: ``(B, N)`` that are proposed
    :param log_ratio: ``(B, N)`` logarithm of Hastings' ratio
    :param generator: source of the draws (``None``: torch's global one)
    :return: ``(B, N)`` which are accepted, and with what probability they were to be
    :raises FloatingPointError: if an energy is NaN or minus infinity
    """
    log_ratio = th.where(energies.isposinf(), -th.inf, log_ratio)
    refuse_diverged(refiner, tick, energies.isnan() | energies.isneginf() | log_ratio.isnan())
    uniform = th.rand(log_ratio.shape, generator=generator, device=log_ratio.device, dtype=log_ratio.dtype)
    return uniform.log() < log_ratio, log_ratio.clamp(max=0.0).exp()


def check_target_acceptance(value: float | None) -> None:
    """
    Check a target of the acceptance.

    :param value: a number between 0 and 1, or ``None``
    :raises ValueError: if it lies outside
    :raises TypeError: if it is neither
    """
    if value is None:
        return
    check_part("target_acceptance", value)
    if value == 1.0:
        raise ValueError("target_acceptance must be below 1, which no step reaches, got 1.0")


def _over_event(x: th.Tensor, like: th.Tensor) -> th.Tensor:
    """``(B, n)`` -> ``(B, n, *1)``, with as many dimensions as particles have."""
    return x.reshape(x.shape + (1,) * (like.dim() - 2))
