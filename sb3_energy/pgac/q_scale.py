"""How far apart the values of one observation's actions are, as a running mean: what makes a guidance free of scales."""

import math

import torch as th
from torch import nn

from sb3_energy.deferred import NonFiniteError, require

SMALLEST_SPREAD = 1e-8
"""Of a critic that finds all actions alike. It is no scale of rewards, only what keeps a division finite."""


class QScale(nn.Module):
    """
    The range from the 5th to the 95th percentile of Q over actions drawn evenly from the box, in the mean over observations
    and over updates. Returns of one run differ by orders of magnitude from another's and from its own beginning; percentiles
    do not mind single actions (return normalisation, Hafner et al. 2023, equation 7, there over states).

    Over the actions of one observation, not over observations: what a policy has to choose between is what its guidance has
    to be measured by.

    Over the square root of the number of action dimensions: a Q that is a sum of a term for each dimension has that many times
    one term's variance. So a temperature in units of the spread means the same width of each dimension in any number of them.

    :param n_dimensions: of an action
    :param decay: of the running mean
    :raises ValueError: if the decay lies outside of (0, 1)
    """

    spread: th.Tensor
    n_updates: th.Tensor

    def __init__(self, n_dimensions: int = 1, decay: float = 0.99):
        super().__init__()
        if not 0.0 < decay < 1.0:
            raise ValueError(f"decay must lie in (0, 1), got {decay!r}")
        self.n_dimensions, self.decay = n_dimensions, decay
        self.register_buffer("spread", th.ones(()))
        self.register_buffer("n_updates", th.zeros((), dtype=th.long))

    def update(self, q_values: th.Tensor) -> None:
        """
        Update the running average of the spread of Q-values between their 5% and 95% quantiles.

        :param q_values: ``(B, N)`` of actions drawn evenly from the box
        :raises FloatingPointError: if their spread is not finite; it is not averaged then
        """
        levels = th.tensor([0.05, 0.95], device=q_values.device, dtype=q_values.dtype)
        low, high = th.quantile(q_values, levels, dim=1)
        found = (high - low).mean() / math.sqrt(self.n_dimensions)
        require(th.isfinite(found), _spread_error)
        # The first ones count in full, as in Adam's corrected means: a run does not begin with the scale of nothing
        # (in 64 bits: in 32 the first weight is not quite 1, and what is left of nothing's scale hides that of small rewards)
        weight = (1.0 - self.decay) / (1.0 - self.decay ** (self.n_updates + 1).double())
        self.spread.lerp_(found.to(self.spread.dtype), weight.to(self.spread.dtype)).clamp_(min=SMALLEST_SPREAD)
        self.n_updates += 1


def _spread_error() -> FloatingPointError:
    return NonFiniteError(
        "the critic's values are NaN or infinite: training stops before their spread is averaged",
        "a lower learning_rate or a smaller reward scale",
    )
