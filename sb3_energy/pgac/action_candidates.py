"""Actions that a potential learns from: drawn from the base and the box, and chosen by their Q-values."""

from typing import NamedTuple

import torch as th

from sb3_energy.refinement.bases import Gaussian
from sb3_energy.refinement.proposals import draw_proposals


class ActionCandidates(NamedTuple):
    """
    Actions in the box, from which the positives of the potential's losses are taken.

    :param actions: ``(B, N, A)``
    :param q_values: ``(B, N)``
    :param log_prob: ``(B, N)`` log-density of the mixture of Gaussian and uniform distribution, on the box
    """

    actions: th.Tensor
    q_values: th.Tensor
    log_prob: th.Tensor

    def best(self, k: int) -> th.Tensor:
        """
        Select the top ``k`` candidates by Q-value.

        :param k: how many
        :return: ``(B, k, A)``, those of highest Q-value
        """
        return self._top(self.q_values, k)

    def draw(self, k: int, temperature: float | th.Tensor) -> th.Tensor:
        """
        Draw without replacement, in proportion to ``exp(Q / temperature) / density``: the largest of log-weights with Gumbel
        noise (Gumbel-top-k, Kool et al. 2019, section 2.3).

        :param k: how many
        :param temperature: in units of Q
        :return: ``(B, k, A)``
        """
        noise = -th.empty_like(self.q_values).exponential_().log()
        return self._top(self.q_values / temperature - self.log_prob + noise, k)

    def _top(self, keys: th.Tensor, k: int) -> th.Tensor:
        index = keys.topk(k, dim=1).indices
        return self.actions.gather(1, index.unsqueeze(-1).expand(-1, -1, self.actions.shape[2]))


def uniform_actions(like: th.Tensor, n: int) -> th.Tensor:
    """
    Sample actions uniformly.

    :param like: ``(B, ..., A)``, for batch size, device and type
    :param n: number of actions for each observation
    :return: ``(B, n, A)``, uniform on the box
    """
    return th.rand(len(like), n, like.shape[-1], device=like.device, dtype=like.dtype) * 2.0 - 1.0


def base_actions(base: Gaussian, n: int, uniform_fraction: float) -> th.Tensor:
    """
    Sample actions from a mixture of the tanh-Gaussian and the uniform distribution.

    :param base: the Gaussian, pre-tanh
    :param n: number of actions for each observation
    :param uniform_fraction: part of them that is uniform on the box
    :return: ``(B, n, A)`` in the box
    """
    return th.tanh(draw_proposals(base, n, uniform_fraction).particles)
