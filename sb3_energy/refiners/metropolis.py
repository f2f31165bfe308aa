"""The Metropolis test."""

import torch as th

from sb3_energy.refiners.diverged import refuse_diverged
from sb3_energy.refiners.norms import squared_norm
from sb3_energy.types import Refiner, RefinerInfo, RefinerState, Tick


def accept(
    refiner: Refiner,
    tick: Tick,
    old: RefinerState,
    new: RefinerState,
    log_ratio: th.Tensor,
    generator: th.Generator | None,
) -> tuple[RefinerState, RefinerInfo]:
    """
    The test of Metropolis et al. (1953) and Hastings (1970), for each particle alone.

    :param refiner: who asks, for the error message
    :param tick: at which step
    :param old: particles, energies, and gradients in ``extra``
    :param new: what is proposed, of the same form; an energy of plus infinity is never accepted
    :param log_ratio: ``(B, N)`` logarithm of Hastings' ratio
    :param generator: source of the draws
    :return: the state after the test; the probabilities of acceptance, and how far the particles went
    :raises FloatingPointError: if an energy that is proposed is NaN or minus infinity
    """
    log_ratio = th.where(new.energies.isposinf(), -th.inf, log_ratio)
    refuse_diverged(refiner, tick, new.energies.isnan() | new.energies.isneginf() | log_ratio.isnan())
    uniform = th.rand(log_ratio.shape, generator=generator, device=log_ratio.device, dtype=log_ratio.dtype)
    accepted = uniform.log() < log_ratio
    over_event = accepted.reshape(accepted.shape + (1,) * (old.particles.dim() - 2))
    particles = th.where(over_event, new.particles, old.particles)
    gradients = th.where(over_event, new.extra, old.extra)
    state = RefinerState(particles, th.where(accepted, new.energies, old.energies), gradients)
    info = RefinerInfo(log_ratio.clamp(max=0.0).exp(), squared_norm(particles - old.particles).sqrt())
    return state, info
