"""Losses on an energy's gradient: how steep it may be, and where a descent along it should end."""

import torch as th

from sb3_energy.autodiff import energy_and_grad
from sb3_energy.types import EnergyFn


def gradient_penalty(energy: EnergyFn, points: th.Tensor, margin: float = 1.0) -> th.Tensor:
    """
    ``max(0, |∇E|_∞ - M)²`` in the mean over points: no coordinate's slope is much above ``M``, so that a chain's steps suit
    the energy (Florence et al. 2021, appendix B.3). It also bounds how far a chain of gradient steps gets, see
    :meth:`sb3_energy.refiners.AnnealedGradient.reach`.

    :param energy: ``(B, N, *E) -> (B, N)``, with a graph of its parameters
    :param points: ``(B, N, *E)``, held fixed: negatives, and the example
    :param margin: ``M``, at least 0
    :return: ``(B,)``
    :raises ValueError: if the margin is negative
    """
    if not margin >= 0.0:
        raise ValueError(f"margin must be at least 0, got {margin!r}")
    _, gradients = energy_and_grad(energy, points.detach(), create_graph=True)
    return (gradients.flatten(2).abs().amax(-1) - margin).relu().square().mean(-1)


def descent_loss(ends: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """
    ``|a_K - a|²`` where a descent of the energy from any start has ended: energy-based transformers learn by its derivative
    through all steps (Gladstone et al. 2025, section 3.1). The descent is
    ``refine(Langevin(step_size, noise_scale=0.0, differentiable=True), starts, Target(energy), n_steps=K)`` with gradients
    enabled.

    The optimum is the conditional mean ``E[a|s]`` at the end of every descent, whatever the start: this is regression with an
    optimiser as its last layer. ``exp(-E)`` is no density, and where an observation has two right actions it ends between
    them. What the energy is good for is to choose among ends and to tell when to stop.

    :param ends: ``(B, N, *E)``, with a graph
    :param actions: ``(B, *E)``, the example of each observation
    :return: ``(B,)``, in the mean over descents
    :raises ValueError: if shapes do not fit together
    """
    if ends.dim() < 3 or actions.shape != ends.shape[:1] + ends.shape[2:]:
        raise ValueError(f"ends must be (B, N, *E) and actions (B, *E), got {tuple(ends.shape)} and {tuple(actions.shape)}")
    return (ends - actions.unsqueeze(1)).flatten(2).square().sum(-1).mean(-1)
