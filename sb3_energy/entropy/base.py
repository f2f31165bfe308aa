"""The base's own log-density."""

from dataclasses import dataclass

import torch as th

from sb3_energy.types import ProposeFn


@dataclass(frozen=True)
class BaseEntropy:
    """
    SAC's estimate: the log-density of the base policy at its own sample.
    Biased once actions are refined, and the fastest.
    """

    def log_prob(self, base_log_prob: th.Tensor, propose: ProposeFn) -> th.Tensor:
        """
        :param base_log_prob: ``(B, 1)``
        :param propose: not asked
        :return: ``base_log_prob``
        """
        return base_log_prob
