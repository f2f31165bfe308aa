"""Gradients of energies: the only place of the package that calls ``torch.autograd.grad``."""

import torch as th

from sb3_energy.types import EnergyFn


def energy_and_grad(fn: EnergyFn, x: th.Tensor, create_graph: bool = False) -> tuple[th.Tensor, th.Tensor]:
    """
    Energies and their gradients with respect to the particles.

    Never touches the ``.grad`` of a parameter. Without ``create_graph`` nothing that is returned carries a graph, and
    the call works inside ``torch.no_grad()``; with it, both results can be differentiated again.

    :param fn: ``(B, N, *E) -> (B, N)``; each energy depends on its own particle alone
    :param x: ``(B, N, *E)`` particles
    :param create_graph: whether to keep the graph of the gradient
    :return: energies ``(B, N)`` and gradients ``(B, N, *E)``
    """
    with th.enable_grad():
        points = x if create_graph and x.requires_grad else x.detach().requires_grad_(True)
        energies = fn(points)
        if not energies.requires_grad:  # a constant does not depend on the particles
            return energies, th.zeros_like(points)
        (gradients,) = th.autograd.grad(energies.sum(), points, create_graph=create_graph, materialize_grads=True)
    return (energies, gradients) if create_graph else (energies.detach(), gradients)
