"""Statistics of refinements and energies for the logger."""

import math
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_energy.energies import Composite
from sb3_energy.refinement.records import refinement_records
from sb3_energy.types import RefinerInfo

LOG_EVERY = 10
"""Refinements are recorded in one of so many updates, since it costs an evaluation of the critics."""


class RefinementLog:
    """The last refinement of next actions that was recorded, and the last minibatch."""

    def __init__(self) -> None:
        self.is_due = True
        """Whether the next refinement is recorded."""
        self.batch: ReplayBufferSamples | None = None
        """The last minibatch, at which the terms of a sum of energies are evaluated."""
        self._last: tuple[list[RefinerInfo], th.Tensor] | None = None

    def keep(self, infos: list[RefinerInfo], actions: th.Tensor) -> None:
        """
        Store a refinement until it is logged.

        :param infos: of the refinement's steps
        :param actions: ``(B, A)`` its results, scaled to [-1, 1]
        """
        self._last = infos, actions

    def record(self, logger: Any, policy: Any) -> None:
        """
        Compute the statistics, only now that they are written: those of the refinement, and for a sum of energies
        ``energy_<name>``, the mean of each weighted term at replayed actions.

        :param logger: SB3's
        :param policy: whose energy is evaluated
        """
        records = {} if self._last is None else refinement_records(*self._last)
        if self.batch is not None and isinstance(policy.energy, Composite):
            with th.no_grad():
                energy = policy.energy.bind(policy.networks(), self.batch.observations)
                means = energy.means(self.batch.actions.unsqueeze(1))
            records |= {f"energy_{name}": mean for name, mean in means.items()}
        for name, value in records.items():
            if math.isfinite(value.item()):  # NaN where there is nothing to report
                logger.record(f"train/{name}", value.item())
