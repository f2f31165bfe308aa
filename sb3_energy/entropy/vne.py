"""Von Neumann entropy of a set of particles."""

from typing import Any

import torch as th

from sb3_energy.checks import check_number
from sb3_energy.conversion import as_tensor


def von_neumann_entropy(particles: Any, bandwidth: float = 0.3) -> th.Tensor:
    """
    ``-tr(K log K)`` of the heat kernel ``K_ij = exp(-|x_i - x_j|² / (2 bandwidth²)) / N``, of trace 1: about the logarithm of
    how many places the particles are at, if places differ by more than the bandwidth. It is 0 for particles at one point
    and ``log N`` for ``N`` that are far apart. Kernel language entropy (Nikitin et al. 2024), on actions.

    It counts modes, not volume, and it is no differential entropy.

    :param particles: ``(B, N, *E)``, a tensor, an array or lists of numbers
    :param bandwidth: distance at which two particles begin to count as two
    :return: ``(B,)``, in nats
    :raises ValueError: if the bandwidth is not positive, the shape is not that of particles, or one is not finite
    :raises TypeError: if something is not a number
    """
    checked = as_tensor("particles", particles)
    # A tensor keeps its graph: the entropy may be a part of a loss
    particles = particles if isinstance(particles, th.Tensor) and particles.is_floating_point() else checked
    if particles.dim() < 3 or 0 in particles.shape[1:]:
        raise ValueError(f"particles must have shape (B, N, *event), got {tuple(particles.shape)}")
    if not th.isfinite(particles).all():
        raise ValueError("particles must be finite, got NaN or infinity")
    bandwidth = check_number("bandwidth", bandwidth, strict=True)
    flat = particles.flatten(2) if particles.dtype == th.float64 else particles.flatten(2).float()
    squares = (flat.unsqueeze(2) - flat.unsqueeze(1)).square().sum(-1)
    kernel = th.exp(-squares / (2.0 * bandwidth**2)) / flat.shape[1]
    eigenvalues = th.linalg.eigvalsh(kernel).clamp(min=0.0)
    return -th.special.xlogy(eigenvalues, eigenvalues).sum(dim=-1)
