"""Statistics of refined targets for the logger."""

import math
from typing import Any

import torch as th

from sb3_energy.refinement.records import refinement_records
from sb3_energy.types import RefinerInfo

LOG_EVERY = 10
"""Refinements are recorded in one of so many updates, since it costs an evaluation of the critics."""


class RefinementLog:
    """The last refinement of next actions that was recorded."""

    def __init__(self) -> None:
        self.is_due = True
        """Whether the next refinement is recorded."""
        self._last: tuple[list[RefinerInfo], th.Tensor] | None = None

    def keep(self, infos: list[RefinerInfo], actions: th.Tensor) -> None:
        """
        :param infos: of the refinement's steps
        :param actions: ``(B, A)`` its results, scaled to [-1, 1]
        """
        self._last = infos, actions

    def record(self, logger: Any) -> None:
        """
        Compute the statistics, only now that they are written.

        :param logger: SB3's
        """
        if self._last is not None:
            for name, value in refinement_records(*self._last).items():
                if math.isfinite(value.item()):  # NaN where there is nothing to report
                    logger.record(f"train/{name}", value.item())
