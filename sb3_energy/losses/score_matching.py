"""
Score matching: the energy's slope is that of the data's log-density, without any negative.

An energy's score is ``-∇E``. What it learns by is the derivative of its own gradient, which is 0 where an activation function
is straight: networks need smooth ones (:data:`sb3_energy.networks.SMOOTH_ACTIVATIONS`).
"""

import torch as th

from sb3_energy.autodiff import energy_and_grad, gradient_and_curvatures
from sb3_energy.types import EnergyFn


def score_matching_loss(energy: EnergyFn, points: th.Tensor) -> th.Tensor:
    """
    ``½ |∇E|² - tr ∇²E``, which differs from ``½ |∇E + ∇log p|²`` by a constant (Hyvärinen 2005, theorem 1). The trace takes
    one derivative for each coordinate. Examples at the edge of the space break the theorem: ``p`` has to vanish there.

    :param energy: ``(B, N, *E) -> (B, N)``, with a graph of its parameters
    :param points: ``(B, N, *E)`` examples
    :return: ``(B,)``, in the mean over examples
    """
    axes = th.eye(points.shape[2:].numel(), dtype=points.dtype, device=points.device).reshape(-1, 1, 1, *points.shape[2:])
    gradients, curvatures = gradient_and_curvatures(energy, points, axes, create_graph=True)
    return (0.5 * _squares(gradients) - curvatures.sum(0)).mean(-1)


def sliced_score_matching_loss(energy: EnergyFn, points: th.Tensor, probes: th.Tensor) -> th.Tensor:
    """
    ``½ |∇E|² - zᵀ ∇²E z`` with random directions ``z`` of unit covariance: the same in the mean, for one derivative whatever
    the dimension (Song et al. 2020, equation 8, the form with less variance).

    :param energy: ``(B, N, *E) -> (B, N)``, with a graph of its parameters
    :param points: ``(B, N, *E)`` examples
    :param probes: ``(K, B, N, *E)`` independent signs or standard normals, ``K`` directions for each example
    :return: ``(B,)``, in the mean over examples and directions
    :raises ValueError: if the probes have another shape
    """
    if probes.shape[1:] != points.shape:
        raise ValueError(f"probes must be (K, *{tuple(points.shape)}), got {tuple(probes.shape)}")
    gradients, curvatures = gradient_and_curvatures(energy, points, probes, create_graph=True)
    return (0.5 * _squares(gradients) - curvatures.mean(0)).mean(-1)


def denoising_score_matching_loss(energy: EnergyFn, points: th.Tensor, noise: th.Tensor, noise_std: float) -> th.Tensor:
    """
    ``½ |σ ∇E(x + σ ξ) - ξ|²``: least where ``-∇E`` is the score of the examples blurred by noise of standard deviation ``σ``
    (Vincent 2011, equation 11, times ``σ²``). It needs no second derivative of the energy in the point and works at the edge
    of a space, at the price of the blur.

    :param energy: ``(B, N, *E) -> (B, N)``, with a graph of its parameters
    :param points: ``(B, N, *E)`` examples
    :param noise: ``(B, N, *E)``, ``ξ``, standard normal
    :param noise_std: ``σ``, above 0
    :return: ``(B,)``, in the mean over examples
    :raises ValueError: if the noise has another shape, or its standard deviation is not positive
    """
    if noise.shape != points.shape:
        raise ValueError(f"noise must be {tuple(points.shape)} as the points are, got {tuple(noise.shape)}")
    if not noise_std > 0.0:
        raise ValueError(f"noise_std must be above 0, got {noise_std!r}")
    _, gradients = energy_and_grad(energy, points + noise_std * noise, create_graph=True)
    return 0.5 * _squares(noise_std * gradients - noise).mean(-1)


def _squares(vectors: th.Tensor) -> th.Tensor:
    return vectors.flatten(2).square().sum(-1)
