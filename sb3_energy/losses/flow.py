"""What velocity fields learn from: weighted candidates for the data end, the base at the other one.

Time runs from the base at 0 to the target at 1: ``x_t = (1 - t) x_0 + t x_1``.
"""

import torch as th

from sb3_energy.autodiff import directional_derivative
from sb3_energy.stats import gaussian_log_prob
from sb3_energy.types import AverageDivergenceFn, AverageVelocityFn


def posterior_velocity(
    points: th.Tensor,
    time: th.Tensor,
    candidates: th.Tensor,
    log_weights: th.Tensor,
    mean: th.Tensor,
    std: th.Tensor,
) -> th.Tensor:
    """
    ``E[x_1 - x_0 | x_t]`` over weighted candidates for ``x_1`` and a Gaussian ``x_0``: each candidate counts by its weight
    times the density of the ``x_0`` from which the straight way to it leads through ``x_t``.

    Energy-weighted flow matching (Zhang, Zhang and Gu 2025: weights ``softmax(-β E(x_1))`` on the data end of
    ``|v - (x_1 - x_0)|²``) has the same gradient in the mean. Rao and Blackwell's theorem says that this one has less noise:
    what remains is that of the candidates and of the point, not that of the pair.

    :param points: ``(B, P, A)`` points ``x_t``
    :param time: ``(B, P)`` times in [0, 1)
    :param candidates: ``(B, N, A)``
    :param log_weights: ``(B, N)``
    :param mean: ``(B, A)`` of the base
    :param std: ``(B, A)`` of the base
    :return: ``(B, P, A)``
    """
    t = time[..., None, None]
    starts = (points.unsqueeze(2) - t * candidates.unsqueeze(1)) / (1.0 - t)
    log_density = gaussian_log_prob(starts, mean[:, None, None], std[:, None, None])
    posterior = (log_weights.unsqueeze(1) + log_density).softmax(dim=-1)
    return (posterior.unsqueeze(-1) * (candidates.unsqueeze(1) - starts)).sum(dim=2)


def flow_matching_loss(velocities: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """
    ``|v - target|²`` in the mean over points (conditional flow matching, Lipman et al. 2023, equation 14).

    :param velocities: ``(B, P, A)``
    :param targets: ``(B, P, A)``, held fixed
    :return: ``(B,)``
    """
    return (velocities - targets).square().sum(-1).mean(-1)


def adaptively_weighted(errors: th.Tensor, floor: float) -> th.Tensor:
    """
    ``e / (e + floor)`` with a denominator that is held fixed, in the mean over points: what is far off, because a target
    is still made of a wrong network's derivative, does not drown what is nearly right (Geng et al. 2025, section 4.3).

    :param errors: ``(B, P)`` squared distances
    :param floor: error from which on weights fall
    :return: ``(B,)``
    """
    return (errors / (errors.detach() + floor)).mean(-1)


def mean_flow_targets(
    average_velocity: AverageVelocityFn,
    points: th.Tensor,
    time: th.Tensor,
    end: th.Tensor,
    velocities: th.Tensor,
    tangents: th.Tensor,
) -> th.Tensor:
    """
    ``v + (r - t) d/dt u(x_t, t, r)``, the derivative along the flow: what the average velocity equals.
    The MeanFlow identity (Geng et al. 2025) with time from the base to the data.

    Along which flow is asked twice. Both may be an estimate without bias, but its noise is multiplied by the network's
    Jacobian where it is the derivative's direction; the network's own velocity ``u(x_t, t, t)`` has none.

    :param average_velocity: the network ``u``, held fixed
    :param points: ``(B, P, A)`` points ``x_t``
    :param time: ``(B, P)``, ``t``
    :param end: ``(B, P)``, ``r >= t``
    :param velocities: ``(B, P, A)``, ``v(x_t, t)``
    :param tangents: ``(B, P, A)``, ``v(x_t, t)`` again: where the derivative is taken along
    :return: ``(B, P, A)``
    """
    derivative = directional_derivative(
        lambda x, t: average_velocity(x, t, end), (points, time), (tangents, th.ones_like(time))
    )
    return velocities + (end - time).unsqueeze(-1) * derivative


def average_divergence_targets(
    average_velocity: AverageVelocityFn,
    average_divergence: AverageDivergenceFn,
    points: th.Tensor,
    time: th.Tensor,
    end: th.Tensor,
    velocities: th.Tensor,
    probes: th.Tensor,
) -> th.Tensor:
    """
    ``div v + (r - t) d/dt δ(x_t, t, r)``: what the mean divergence ``δ`` of the velocity along the flow equals, by the same
    identity. ``v`` is the network's own velocity, ``u(x, t, t)``, whose flow the samples follow, and its divergence is
    estimated with one probe (Hutchinson 1990).

    :param average_velocity: the network ``u``, held fixed
    :param average_divergence: the network ``δ``, held fixed
    :param points: ``(B, P, A)`` points ``x_t``
    :param time: ``(B, P)``, ``t``
    :param end: ``(B, P)``, ``r >= t``
    :param velocities: ``(B, P, A)``, ``v(x_t, t)``
    :param probes: ``(B, P, A)`` of independent signs
    :return: ``(B, P)``
    """
    moved = directional_derivative(lambda x: average_velocity(x, time, time), (points,), (probes,))
    divergence = (probes * moved).sum(-1)
    derivative = directional_derivative(
        lambda x, t: average_divergence(x, t, end), (points, time), (velocities, th.ones_like(time))
    )
    return divergence + (end - time) * derivative


def draw_times(
    shape: tuple[int, int], same_fraction: float, like: th.Tensor, generator: th.Generator | None = None
) -> tuple[th.Tensor, th.Tensor]:
    """
    Times ``t <= r``: a uniform one to begin with, and to end with the same one for a part of the points, where the average
    velocity is the velocity, the end of the way for half of the others, which is what a single step asks for, and any later
    one for the rest.

    :param shape: ``(B, P)``
    :param same_fraction: probability that they are equal, in [0, 1]
    :param like: for device and type
    :param generator: source of the draws (``None``: torch's global one)
    :return: ``t`` and ``r``, ``(B, P)`` each
    """
    begin, rest, kind = th.rand((3, *shape), generator=generator, device=like.device, dtype=like.dtype)
    whole = th.ones_like(begin)
    end = th.where(kind < 0.5 + 0.5 * same_fraction, whole, begin + (whole - begin) * rest)
    return begin, th.where(kind < same_fraction, begin, end)
