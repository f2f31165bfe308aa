"""How energies of prefixes learn what the energy of the whole is worth once the coordinates that follow are integrated out."""

import torch as th
from torch.nn import functional as F

from sb3_energy.stats import log_mean_exp
from sb3_energy.types import EnergyFn, PrefixEnergyFn


def soft_marginal(energies: th.Tensor, proposal_log_prob: th.Tensor) -> th.Tensor:
    """
    ``-log (1/K) Σ_k exp(-E(x_k)) / q(x_k)``, an estimate of ``-log ∫ exp(-E(x)) dx`` by importance sampling.

    The mean inside of the logarithm is unbiased, the logarithm of it is not (Jensen): the estimate lies above, by about
    ``(K / effective sample size - 1) / (2 K)`` in the mean (Burda et al. 2016, theorem 1), more where few of the
    proposals count.

    :param energies: ``(..., K)``, temperature included, in the space of the densities
    :param proposal_log_prob: ``(..., K)`` log-densities of the proposals
    :return: ``(...)``
    """
    return -log_mean_exp(-energies - proposal_log_prob, dim=-1)


def prefix_loss(
    energy: EnergyFn,
    prefix_energy: PrefixEnergyFn,
    points: th.Tensor,
    proposals: th.Tensor,
    proposal_log_prob: th.Tensor,
) -> th.Tensor:
    """
    ``Σ_j mean huber(E_j(x_{:j}) - soft marginal over x_{j+1} of E_{j+1}(x_{:j}, x_{j+1}))`` for ``j = D-1 .. 1``, with the
    marginals held fixed and ``E_D`` the energy itself: soft values backwards through the coordinates, as through time in soft
    Q-learning (Haarnoja et al. 2017, equation 10). A network learns from the one after it, so errors add up over ``D``.

    Energies of points that are never drawn lie tens of nats above the others. Huber's loss counts them by their distance
    and not by its square, so that they do not dominate (Huber 1964). The marginals lie above the true ones in the mean,
    see :func:`soft_marginal`, and the regression takes over what of that depends on the prefix.

    It evaluates ``B M K`` energies, as many of each prefix but the first without gradient, and ``B M`` of each with.

    :param energy: ``(B, n, D) -> (B, n)``, temperature included, in the space of the points; held fixed
    :param prefix_energy: ``(B, n, j) -> (B, n)``, what learns
    :param points: ``(B, M, D)`` whose prefixes are learned at; they should cover what is drawn
    :param proposals: ``(B, K, D)``, of each coordinate alone and for all points of an observation
    :param proposal_log_prob: ``(B, K, D)`` log-density of each number
    :return: scalar
    :raises ValueError: if the shapes do not fit together, or there is one coordinate only, which has no prefix
    """
    batch, n_points, dimension = _checked_shape(points, proposals, proposal_log_prob)
    loss = points.new_zeros(())
    for j in range(1, dimension):
        prefix = points[..., :j]
        following = energy if j + 1 == dimension else prefix_energy
        with th.no_grad():
            energies = following(_extended(prefix, proposals[..., j])).reshape(batch, n_points, -1)
            marginal = soft_marginal(energies, proposal_log_prob[:, None, :, j])
        loss = loss + F.huber_loss(prefix_energy(prefix), marginal)
    return loss


def _extended(prefix: th.Tensor, column: th.Tensor) -> th.Tensor:
    """
    Extend prefixes of actions by one coordinate.

    :param prefix: ``(B, M, j)``
    :param column: ``(B, K)`` numbers for the coordinate after it
    :return: ``(B, M K, j + 1)``, each prefix with each number
    """
    shape = (*prefix.shape[:2], column.shape[1])
    repeated = prefix.unsqueeze(2).expand(*shape, -1)
    return th.cat([repeated, column[:, None, :, None].expand(*shape, 1)], dim=3).flatten(1, 2)


def _checked_shape(points: th.Tensor, proposals: th.Tensor, proposal_log_prob: th.Tensor) -> th.Size:
    same = proposals.shape == proposal_log_prob.shape and points.dim() == proposals.dim() == 3
    if not same or points.shape[::2] != proposals.shape[::2]:
        raise ValueError(
            "points must be (B, M, D), proposals and proposal_log_prob (B, K, D), "
            f"got {tuple(points.shape)}, {tuple(proposals.shape)} and {tuple(proposal_log_prob.shape)}"
        )
    if points.shape[2] < 2:
        raise ValueError(f"points must have at least 2 coordinates to have a prefix, got {tuple(points.shape)}")
    return points.shape
