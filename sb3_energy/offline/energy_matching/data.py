"""What is learned from, checked once: samples, or expert pairs of observations and actions."""

from typing import Any, NamedTuple

import torch as th

from sb3_energy.conversion import as_tensor


class Samples(NamedTuple):
    """
    :param actions: ``(n, K, D)``, ``K`` of one observation
    :param observations: ``(n, O)``, or ``None`` for samples that depend on nothing
    """

    actions: th.Tensor
    observations: th.Tensor | None

    def batch(self, batch_size: int, generator: th.Generator) -> tuple[th.Tensor, th.Tensor | None]:
        """
        Drawn with replacement. Samples without observations are particles of one empty observation, so that all of them are
        paired; actions stay with the others of their own observation.

        :param batch_size: how many samples; with observations, as many of them as have about so many actions together
        :param generator: source of the draw
        :return: ``(1, batch_size, D)`` and ``None``, or ``(B, K, D)`` and ``(B, O)``
        """
        n, n_actions = self.actions.shape[:2]
        n_rows = batch_size if self.observations is None else max(batch_size // n_actions, 1)
        rows = th.randint(n, (n_rows,), generator=generator, device=self.actions.device)
        if self.observations is None:
            return self.actions[rows, 0].unsqueeze(0), None
        return self.actions[rows], self.observations[rows]


def as_points(name: str, values: Any, dims: tuple[int, ...], device: th.device, no_rows: bool = False) -> th.Tensor:
    """
    :param name: of the argument
    :param values: what :func:`sb3_energy.conversion.as_tensor` takes
    :param dims: how many axes it may have
    :param device: where to put it
    :param no_rows: whether ``n`` may be 0
    :return: the same, in single precision
    :raises TypeError: if these are no real numbers
    :raises ValueError: if there are none, the shape is another one, or one is not finite
    """
    points = as_tensor(name, values)
    if points.dim() not in dims or 0 in points.shape[1 if no_rows and points.dim() > 1 else 0 :]:
        shapes = " or ".join({1: "(D,)", 2: "(n, D)", 3: "(n, K, D)"}[dim] for dim in dims)
        raise ValueError(f"{name} must have shape {shapes} with no 0 in it, got {tuple(points.shape)}")
    points = points.to(device=device, dtype=th.float32)
    if not th.isfinite(points).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity; nothing was learned from it")
    return points


def checked_samples(samples: Any, observations: Any, box: str | None, device: th.device) -> Samples:
    """
    :param samples: ``(n, D)``, or ``(n, K, D)`` with observations
    :param observations: ``(n, O)`` or ``None``
    :param box: whether actions must lie in ``[-1, 1]``
    :param device: where to put them
    :return: both as tensors
    :raises TypeError: if something is no array of numbers
    :raises ValueError: if a shape is wrong, a number is not finite, or an action lies outside the box
    """
    actions = as_points("samples", samples, (2,) if observations is None else (2, 3), device)
    if box is not None and not bool((actions.abs() <= 1.0).all()):
        raise ValueError(
            f"samples must lie in [-1, 1] with box={box!r}, got one of magnitude {actions.abs().max().item():g}; scale them"
        )
    actions = actions.unsqueeze(1) if actions.dim() == 2 else actions
    if observations is None:
        return Samples(actions, None)
    found = as_points("observations", observations, (2,), device)
    if len(found) != len(actions):
        raise ValueError(f"there must be as many observations as rows of samples, got {len(found)} and {len(actions)}")
    return Samples(actions, found)
