"""Plans that one prediction hands on to the next, as SB3's ``state``."""

import math
from typing import NamedTuple

import numpy as np
import torch as th

from sb3_energy.refinement.bases import LARGEST_ACTION, Base
from sb3_energy.stats import normal_noise

PredictState = tuple[np.ndarray, ...] | None

WARM_PART = 0.25
"""Part of the candidates that is drawn around the last plan. Most still come from the base and the box, since the last plan
was made for another observation."""


class _LastPlans(NamedTuple):
    mean: th.Tensor  # (B, *E), pre-tanh
    known: th.Tensor  # (B,) False where an episode begins


class Plans:
    """
    The plans a refinement starts from, and those it ends with. TD-MPC2 starts each plan at the mean of the last one (Hansen
    et al. 2024); here that is one of several places to start from.

    :param state: what ``predict`` returned, a tuple of one array ``(n_envs, *E)``: the means of the last plans, pre-tanh
        (``None``: there are none)
    :param episode_start: ``(n_envs,)`` where an episode begins and the last plan is forgotten (``None``: nowhere)
    """

    def __init__(self, state: PredictState = None, episode_start: np.ndarray | None = None):
        self._before, self._episode_start = state, episode_start
        self.state: PredictState = None

    def warmed(
        self,
        candidates: th.Tensor,
        base: Base,
        *,
        generator: th.Generator | None = None,
        quasi_random: bool = False,
    ) -> th.Tensor:
        """
        Put draws around the last plans in the place of the last candidates.

        :param candidates: ``(B, N, *E)``, pre-tanh
        :param base: with a frame, whose width the draws have
        :param generator: source of the draws
        :param quasi_random: take fixed quantiles in place of draws, the first of which is the plan's mean
        :return: the candidates; the same tensor, and no draws, where no observation has a last plan
        :raises ValueError: if state or episode_start do not fit, or the base has no frame
        """
        last = self._last(candidates)
        if last is None:
            return candidates
        kept, replaced = candidates.tensor_split([candidates.shape[1] - n_warm(candidates.shape[1])], dim=1)
        frame = base.frame()
        if frame is None:
            raise ValueError(f"warm_start=True needs a base with a frame, {type(base).__name__} has none")
        noise = normal_noise(replaced, quasi_random, generator)
        draws = last.mean.unsqueeze(1) + frame.std.unsqueeze(1) * noise
        known = last.known.reshape(-1, *[1] * (replaced.dim() - 1))
        return th.cat([kept, th.where(known, draws, replaced)], dim=1)

    def keep(self, mean: th.Tensor) -> None:
        """
        Keep the plans of a refinement.

        :param mean: ``(B, *E)`` of the plans it has ended with, pre-tanh
        """
        # At a wall each descent moves the plan a bit further out, until all draws around it are the same action
        edge = math.atanh(LARGEST_ACTION)
        self.state = (mean.clamp(-edge, edge).cpu().numpy(),)

    def _last(self, like: th.Tensor) -> _LastPlans | None:
        shape = (like.shape[0], *like.shape[2:])
        starts = np.zeros(shape[0], dtype=bool) if self._episode_start is None else np.asarray(self._episode_start)
        if starts.shape != shape[:1]:
            raise ValueError(f"episode_start must have shape (n_envs,) = {shape[:1]}, got {starts.shape}")
        if self._before is None:
            return None
        mean = np.asarray(self._before[0]) if isinstance(self._before, tuple) and len(self._before) == 1 else None
        if mean is None or mean.shape != shape or mean.dtype.kind != "f" or not np.isfinite(mean).all():
            got = type(self._before).__name__ if mean is None else f"one of shape {mean.shape} and type {mean.dtype}"
            raise ValueError(
                f"state must be what predict returned, a tuple of one finite float array (n_envs, A) = {shape}, got {got}"
            )
        known = th.as_tensor(~starts.astype(bool), device=like.device)
        if not known.any():
            return None
        return _LastPlans(th.as_tensor(mean, device=like.device, dtype=like.dtype), known)


def n_warm(n_particles: int) -> int:
    """
    The number of candidates around the last plan.

    :param n_particles: how many candidates there are, at least 2
    :return: how many of them they are
    """
    return max(1, int(WARM_PART * n_particles))
