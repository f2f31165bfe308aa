"""Von Neumann entropy of a set of particles."""

import torch as th


def von_neumann_entropy(particles: th.Tensor, bandwidth: float = 0.3) -> th.Tensor:
    """
    ``-tr(K log K)`` of the heat kernel ``K_ij = exp(-|x_i - x_j|² / (2 bandwidth²)) / N``, of trace 1: about the logarithm of
    how many places the particles are at, if places differ by more than the bandwidth. It is 0 for particles at one point
    and ``log N`` for ``N`` that are far apart. Kernel language entropy (Nikitin et al. 2024), on actions.

    It counts modes, not volume, and it is no differential entropy.

    :param particles: ``(B, N, *E)``
    :param bandwidth: distance at which two particles begin to count as two
    :return: ``(B,)``, in nats
    :raises ValueError: if the bandwidth is not positive or the shape is not that of particles
    """
    if particles.dim() < 3:
        raise ValueError(f"particles must have shape (B, N, *event), got {tuple(particles.shape)}")
    if not bandwidth > 0.0:
        raise ValueError(f"bandwidth must be above 0, got {bandwidth!r}")
    flat = particles.flatten(2)
    squares = (flat.unsqueeze(2) - flat.unsqueeze(1)).square().sum(-1)
    kernel = th.exp(-squares / (2.0 * bandwidth**2)) / flat.shape[1]
    eigenvalues = th.linalg.eigvalsh(kernel).clamp(min=0.0)
    return -th.special.xlogy(eigenvalues, eigenvalues).sum(dim=-1)
