"""
The losses of an energy on examples: each is a function of the same arguments.

What becomes of ``exp(-E)``, with the energy in units of the temperature and up to a factor of the observation: with
``info_nce`` ``p / q``, the law of examples over that of counter-examples; with ``r_nce`` and score matching ``p``; with
``nce`` ``p``, normalised; with ``contrastive_divergence`` ``p`` if chains reach equilibrium. With ``ebt`` it is no density.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th

from sb3_energy.losses import (
    contrastive_divergence_loss,
    denoising_score_matching_loss,
    descent_loss,
    gradient_penalty,
    info_nce_loss,
    nce_loss,
    r_nce_loss,
    sliced_score_matching_loss,
)
from sb3_energy.offline.ibc.negatives import Negatives
from sb3_energy.types import EnergyFn, PrefixEnergyFn

Losses = dict[str, th.Tensor]


class Examples(NamedTuple):
    """
    Examples and what an energy of them learns by.

    :param energy: ``(B, N, A) -> (B, N)``, temperature included, with a graph of its parameters
    :param actions: ``(B, 1, A)`` the expert's
    :param negatives: counter-examples, where the loss has some
    :param settings: an :class:`~sb3_energy.offline.ibc.energy_training.EnergyTraining`
    :param descend: ``n -> (B, n, A)``, ends of descents of the energy, with a graph
    """

    energy: EnergyFn
    actions: th.Tensor
    negatives: Negatives | None
    settings: Any
    descend: Callable[[int], th.Tensor]


def info_nce(examples: Examples) -> Losses:
    """``InfoNCE``: which of all is the example."""
    return _compared(examples, lambda above, below, _: info_nce_loss(above, below))


def r_nce(examples: Examples) -> Losses:
    """Ranking NCE: the same, with the proposal's density subtracted."""
    return _compared(examples, lambda above, below, densities: r_nce_loss(above, below, *densities))


def nce(examples: Examples) -> Losses:
    """Noise-contrastive estimation: whether each is an example or noise."""
    return _compared(examples, lambda above, below, densities: nce_loss(above, below, *densities))


def contrastive_divergence(examples: Examples) -> Losses:
    """Contrastive divergence with a bound: examples down, the model's draws up."""

    def loss(above: th.Tensor, below: th.Tensor, _: Any) -> th.Tensor:
        magnitude = above.square().mean(-1) + below.square().mean(-1)
        return contrastive_divergence_loss(above, below, 1.0) + examples.settings.magnitude_coef * magnitude

    return _compared(examples, loss)


def denoising_score_matching(examples: Examples) -> Losses:
    """Score matching on examples with noise."""
    actions = examples.actions
    loss = denoising_score_matching_loss(examples.energy, actions, th.randn_like(actions), examples.settings.noise_std)
    return dict(loss=loss.mean())


def sliced_score_matching(examples: Examples) -> Losses:
    """Score matching along random directions."""
    actions = examples.actions
    probes = 2.0 * th.randint(0, 2, (examples.settings.n_probes, *actions.shape), device=actions.device) - 1.0
    return dict(loss=sliced_score_matching_loss(examples.energy, actions, probes.to(actions.dtype)).mean())


def ebt(examples: Examples) -> Losses:
    """Regression through a descent of the energy."""
    ends = examples.descend(examples.settings.n_descents)
    return dict(loss=descent_loss(ends, examples.actions.squeeze(1)).mean())


def prefix_losses(energy: PrefixEnergyFn, actions: th.Tensor, negatives: th.Tensor) -> th.Tensor:
    """
    InfoNCE of each prefix, against prefixes of uniform counter-examples, which are uniform: the optimum of
    ``exp(-E_j)`` is the density of the first ``j`` coordinates, up to a factor of the observation (Florence et al. 2021,
    appendix B.2).

    :param energy: ``(B, N, j) -> (B, N)``, temperature included
    :param actions: ``(B, 1, A)`` the examples
    :param negatives: ``(B, M, A)``, uniform
    :return: scalar, the sum over ``j = 1 .. A - 1``; 0 where there is one coordinate, which has no prefix
    """
    loss = actions.new_zeros(())
    for j in range(1, actions.shape[-1]):
        loss = loss + info_nce_loss(energy(actions[..., :j]), energy(negatives[..., :j])).mean()
    return loss


def _compared(examples: Examples, loss: Callable[[th.Tensor, th.Tensor, Any], th.Tensor]) -> Losses:
    """A loss of the energies of examples and counter-examples, and the gradient penalty at both."""
    negatives, settings = examples.negatives, examples.settings
    assert negatives is not None
    points = th.cat([examples.actions, negatives.points], dim=1)
    above, below = examples.energy(points).tensor_split([1], dim=1)
    found = loss(above, below, (negatives.positive_log_prob, negatives.log_prob)).mean()
    records = dict(
        positive_energy=above.mean(),
        negative_energy=below.mean(),
        accuracy=(above <= below.amin(1, keepdim=True)).float().mean(),
    )
    if settings.gradient_margin is None:
        return dict(loss=found) | records
    penalty = gradient_penalty(examples.energy, points, settings.gradient_margin).mean()
    return dict(loss=found + settings.penalty_coef * penalty, gradient_penalty=penalty) | records
