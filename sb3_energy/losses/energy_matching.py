"""What a potential ``V(s, a)`` learns from: optimal transport far from the data, contrastive divergence near it.

Energy Matching (Balcerak et al. 2025): one time-independent potential is velocity field and energy at once. ``-∇V`` leads from
the base to the data along straight ways, and where the data is, ``exp(-V / ε)`` is its density.
"""

import numpy as np
import torch as th

VALUE_WEIGHTS = ("relu", "exp")


def transport_pairs(starts: th.Tensor, ends: th.Tensor) -> th.Tensor:
    """
    The assignment of ends to starts of one observation whose ways are shortest: ``Σ |a_1 - a_0|²`` is least, exactly
    (minibatch optimal transport, Tong et al. 2024, section 3.2; never across observations).

    :param starts: ``(B, N, A)``
    :param ends: ``(B, N, A)``
    :return: ``(B, N, A)``, the ends in the order of their starts
    :raises ValueError: if there are not as many ends as starts
    """
    if starts.shape != ends.shape or starts.dim() != 3:
        raise ValueError(f"starts and ends must be (B, N, A) alike, got {tuple(starts.shape)} and {tuple(ends.shape)}")
    from scipy.optimize import linear_sum_assignment  # a quarter of a second, which only those pay who need it

    with th.no_grad():
        costs = th.cdist(starts.double(), ends.double()).square().cpu().numpy()
        order = np.stack([linear_sum_assignment(cost)[1] for cost in costs]) if len(costs) else np.zeros((0, 0), np.int64)
    index = th.from_numpy(order).to(ends.device)
    return ends.gather(1, index.unsqueeze(-1).expand_as(ends))


def points_between(starts: th.Tensor, ends: th.Tensor, time: th.Tensor) -> th.Tensor:
    """
    ``a_t = (1 - t) a_0 + t a_1``.

    :param starts: ``(B, N, A)``
    :param ends: ``(B, N, A)``, each beside its start
    :param time: ``(B, N)`` in [0, 1]
    :return: ``(B, N, A)``
    """
    return starts + time.unsqueeze(-1) * (ends - starts)


def transport_loss(gradients: th.Tensor, starts: th.Tensor, ends: th.Tensor) -> th.Tensor:
    """
    ``|∇V(a_t) + (a_1 - a_0)|²`` in the mean over pairs. Of all fields ``-E[a_1 - a_0 | a_t]`` is the one that makes it least.

    :param gradients: ``(B, N, A)`` of ``V`` at :func:`points_between` them, with a graph
    :param starts: ``(B, N, A)``
    :param ends: ``(B, N, A)``, each beside its start
    :return: ``(B,)``
    """
    return (gradients + (ends - starts)).square().sum(-1).mean(-1)


def contrastive_divergence_loss(
    positives: th.Tensor, negatives: th.Tensor, temperature: float | th.Tensor, negative_weights: th.Tensor | None = None
) -> th.Tensor:
    """
    ``(E(a⁺) - E(a⁻)) / ε``: its gradient is that of ``-log p(a⁺)`` where the negatives are draws from ``exp(-E / ε)``
    (Hinton 2002). The samples are held fixed, the energies' parameters are not.

    :param positives: ``(B, N)`` energies of what should be likely
    :param negatives: ``(B, M)`` energies of the model's draws, which were made without a graph
    :param temperature: ``ε``, above 0
    :param negative_weights: ``(B, M)``, adding up to 1 for each observation (``None``: equal ones)
    :return: ``(B,)``
    :raises ValueError: if the temperature is a number and not positive
    """
    if not isinstance(temperature, th.Tensor) and not temperature > 0.0:
        raise ValueError(f"temperature must be above 0, got {temperature!r}")
    model = negatives.mean(-1) if negative_weights is None else (negative_weights * negatives).sum(-1)
    return (positives.mean(-1) - model) / temperature


def gradient_matching_loss(
    gradients: th.Tensor, q_gradients: th.Tensor, temperature: float | th.Tensor, ent_coef: float | th.Tensor
) -> th.Tensor:
    """
    ``|-∇V / ε - ∇Q / α|²`` in the mean over particles: ``exp(-V / ε)`` becomes ``exp(Q / α)`` without a draw from either.

    :param gradients: ``(B, N, A)`` of ``V``, with a graph
    :param q_gradients: ``(B, N, A)`` of the critics' value, held fixed
    :param temperature: ``ε``, at which the potential is sampled
    :param ent_coef: ``α``
    :return: ``(B,)``
    """
    return (gradients / temperature + q_gradients.detach() / ent_coef).square().sum(-1).mean(-1)


def expectile_loss(errors: th.Tensor, expectile: float) -> th.Tensor:
    """
    ``|τ - 1(error < 0)| error²``: least where the value is the τ-expectile of its targets, a soft maximum over the actions of
    the data (implicit Q-learning, Kostrikov et al. 2022, equation 5).

    :param errors: ``(B, ...)``, targets minus values
    :param expectile: ``τ`` in (0, 1); 0.5 is the mean
    :return: ``(B, ...)``
    :raises ValueError: if the expectile lies outside
    """
    if not 0.0 < expectile < 1.0:
        raise ValueError(f"expectile must lie in (0, 1), got {expectile!r}")
    return th.where(errors < 0.0, 1.0 - expectile, expectile) * errors.square()


def value_weights(advantages: th.Tensor, form: str = "relu", largest: float = 10.0) -> th.Tensor:
    """
    A weight for each sample by its advantage: what was done counts where it was better than what else was done there.

    :param advantages: ``(B,)``, ``Q(s, a) - V(s)``
    :param form: ``"relu"``, the advantage itself where it is positive, or ``"exp"`` of it
    :param largest: bound of a weight
    :return: ``(B,)``, without a graph, between 0 and the bound
    :raises ValueError: if there is no such form or the bound is not positive
    """
    if form not in VALUE_WEIGHTS:
        raise ValueError(f"form must be one of {list(VALUE_WEIGHTS)}, got {form!r}")
    if not largest > 0.0:
        raise ValueError(f"largest must be above 0, got {largest!r}")
    with th.no_grad():
        return (advantages.relu() if form == "relu" else advantages.clamp(max=80.0).exp()).clamp(max=largest)
