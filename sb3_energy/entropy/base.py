"""The base's own log-density."""

from dataclasses import dataclass
from typing import ClassVar

from sb3_energy.types import EntropyContext, EntropyEstimate


@dataclass(frozen=True)
class BaseEntropy:
    """
    SAC's estimate: the log-density of the base policy at its own sample.
    Biased once actions are refined, and the fastest.
    """

    looks_at: ClassVar[str] = "base"

    def estimate(self, context: EntropyContext) -> EntropyEstimate:
        """
        Estimate the log-probability by that of the base distribution.

        :param context: of which ``base_log_prob`` is all that is asked
        :return: ``base_log_prob``
        """
        return EntropyEstimate(context.base_log_prob)
