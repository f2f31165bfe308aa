"""Norms of particles and of their gradients."""

import torch as th


def squared_norm(x: th.Tensor) -> th.Tensor:
    """
    :param x: ``(B, N, *E)``
    :return: ``(B, N)`` sum of squares over the event
    """
    return x.flatten(2).square().sum(-1)


def clipped_gradients(gradients: th.Tensor, max_norm: float | None) -> th.Tensor:
    """
    :param gradients: ``(B, N, *E)``
    :param max_norm: longest gradient of a particle, in Euclidean norm (``None``: any)
    :return: the same, with longer ones shortened
    """
    if max_norm is None:
        return gradients
    squares = squared_norm(gradients)
    squares = squares.clamp(min=th.finfo(squares.dtype).tiny)  # the root's derivative at 0 is infinite
    norm = squares.sqrt().clamp(min=max_norm)
    return gradients * (max_norm / norm).reshape(norm.shape + (1,) * (gradients.dim() - 2))
