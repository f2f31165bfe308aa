"""
What the energy of an observation and an action learns from: one right action among wrong ones.

All three losses compare energies of examples (positives) with those of draws from a proposal (negatives), and differ in what
``exp(-E)`` becomes where they are least. In the argmin over actions of one observation it may be any function of the
observation times what is said here.

| loss | ``exp(-E)`` becomes | needs the proposal's density |
|---|---|---|
| :func:`info_nce_loss` | ``p / q``: right for a uniform proposal only | no |
| :func:`r_nce_loss` | ``p`` | yes |
| :func:`nce_loss` | ``p``, normalised | yes |

Negatives that are draws from the model itself are InfoNCE's case ``q ∝ exp(-E)``: then ``exp(-E)`` becomes ``√p``. Negatives
that a chain has moved have no density that is known: ``r_nce_loss`` and ``nce_loss`` cannot have them.
"""

import torch as th
from torch.nn import functional as F


def info_nce_loss(positives: th.Tensor, negatives: th.Tensor, temperature: float | th.Tensor = 1.0) -> th.Tensor:
    """
    ``-log(e^{-E⁺/T} / (e^{-E⁺/T} + Σ_j e^{-E⁻_j/T}))``: which of all is the example (van den Oord et al. 2018, equation 4; of
    actions Florence et al. 2021, equation 1). Its optimum is ``exp(-E/T) ∝ p(a|s) / q(a|s)`` with the law ``q`` of the
    negatives, whatever their number: draws of it follow ``p`` only if negatives are uniform.

    :param positives: ``(B, P)`` energies of examples, each of which is compared with all negatives
    :param negatives: ``(B, M)`` energies of draws from a proposal
    :param temperature: ``T``, above 0
    :return: ``(B,)``, in the mean over positives
    :raises ValueError: if shapes do not fit together, or the temperature is a number and not positive
    """
    _check(positives, negatives, temperature)
    heights = positives / temperature
    others = (-negatives / temperature).logsumexp(-1, keepdim=True)
    return F.softplus(heights + others).mean(-1)


def r_nce_loss(
    positives: th.Tensor,
    negatives: th.Tensor,
    positive_log_prob: th.Tensor,
    negative_log_prob: th.Tensor,
    temperature: float | th.Tensor = 1.0,
) -> th.Tensor:
    """
    ``-log softmax_0(-E(a_j)/T - log q(a_j))`` over the example and draws from ``q``: ranking noise-contrastive estimation,
    whose optimum is ``exp(-E/T) ∝ p`` whatever ``q`` is (Singh, Tu and Sindhwani 2023, equation 6; Ma and Collins 2018). It
    needs no normaliser, and the proposal may itself learn, by likelihood.

    :param positives: ``(B, P)`` energies of examples, each of which is compared with all negatives
    :param negatives: ``(B, M)`` energies of draws from the proposal
    :param positive_log_prob: ``(B, P)`` the proposal's log-density at the examples
    :param negative_log_prob: ``(B, M)`` the same at its draws, in the same space
    :param temperature: ``T``, above 0
    :return: ``(B,)``, in the mean over positives; the densities are held fixed
    :raises ValueError: if shapes do not fit together, or the temperature is a number and not positive
    """
    _check_densities(positives, negatives, positive_log_prob, negative_log_prob)
    above, below = (
        energies + temperature * log_prob.detach()
        for energies, log_prob in ((positives, positive_log_prob), (negatives, negative_log_prob))
    )
    return info_nce_loss(above, below, temperature)


def nce_loss(
    positives: th.Tensor, negatives: th.Tensor, positive_log_prob: th.Tensor, negative_log_prob: th.Tensor
) -> th.Tensor:
    """
    ``-log σ(G(a⁺)) - ν mean log(1 - σ(G(a⁻)))`` with ``G = -E - log q - log ν``, ``ν`` negatives for each example:
    noise-contrastive estimation (Gutmann and Hyvärinen 2010, equation 8). Its optimum is ``exp(-E) = p``, normalised: the
    normaliser is learned as a part of the energy.

    :param positives: ``(B, P)`` energies of examples
    :param negatives: ``(B, M)`` energies of draws from the noise
    :param positive_log_prob: ``(B, P)`` the noise's log-density at the examples
    :param negative_log_prob: ``(B, M)`` the same at its draws, in the same space
    :return: ``(B,)``, for each example
    :raises ValueError: if shapes do not fit together
    """
    _check(positives, negatives, 1.0)
    _check_densities(positives, negatives, positive_log_prob, negative_log_prob)
    ratio = negatives.shape[-1] / positives.shape[-1]
    offset = positives.new_tensor(ratio).log()
    above, below = -positives - positive_log_prob.detach() - offset, -negatives - negative_log_prob.detach() - offset
    return F.softplus(-above).mean(-1) + ratio * F.softplus(below).mean(-1)


def _check(positives: th.Tensor, negatives: th.Tensor, temperature: float | th.Tensor) -> None:
    if positives.dim() != 2 or negatives.dim() != 2 or len(positives) != len(negatives) or negatives.shape[1] == 0:
        raise ValueError(
            f"positives and negatives must be (B, P) and (B, M) with M > 0, got {tuple(positives.shape)} and "
            f"{tuple(negatives.shape)}"
        )
    if not isinstance(temperature, th.Tensor) and not temperature > 0.0:
        raise ValueError(f"temperature must be above 0, got {temperature!r}")


def _check_densities(
    positives: th.Tensor, negatives: th.Tensor, positive_log_prob: th.Tensor, negative_log_prob: th.Tensor
) -> None:
    for name, energies, log_prob in (
        ("positive_log_prob", positives, positive_log_prob),
        ("negative_log_prob", negatives, negative_log_prob),
    ):
        if log_prob.shape != energies.shape:
            raise ValueError(f"{name} must be {tuple(energies.shape)} as the energies are, got {tuple(log_prob.shape)}")
