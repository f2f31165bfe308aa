"""Plans that one prediction hands on to the next, in the form of SB3's ``state``."""

import math
from typing import NamedTuple

import numpy as np
import torch as th

from sb3_energy.refinement.proposals import LARGEST_ACTION, Gaussian
from sb3_energy.refiners import normal_quantiles

PredictState = tuple[np.ndarray, ...] | None

WARM_PART = 0.25
"""Part of the candidates that is drawn around the last plan. The base and the box keep the larger one: the last plan was
made for another observation."""


class _LastPlans(NamedTuple):
    mean: th.Tensor  # (B, A), before the squash
    known: th.Tensor  # (B,) False where an episode begins


class Plans:
    """
    What a refinement with plans starts from, and where it writes those it ends with. TD-MPC2 starts each plan at the mean
    of the last one (Hansen et al. 2024); here that is one of the places to start from.

    :param state: what ``predict`` returned, a tuple of one array ``(n_envs, A)``: the means of the last plans before the
        squash (``None``: there are none)
    :param episode_start: ``(n_envs,)`` where an episode begins and the last plan is forgotten (``None``: nowhere)
    """

    def __init__(self, state: PredictState = None, episode_start: np.ndarray | None = None):
        self._before, self._episode_start = state, episode_start
        self.state: PredictState = None

    def warmed(self, candidates: th.Tensor, base: Gaussian, generator: th.Generator | None, quasi_random: bool) -> th.Tensor:
        """
        Put draws around the last plans in the place of the last candidates.

        :param candidates: ``(B, N, A)``, before the squash
        :param base: whose width the draws have
        :param generator: source of the draws
        :param quasi_random: take fixed quantiles in place of draws, the first of which is the plan's mean
        :return: the candidates; the same tensor where no observation has a last plan, and nothing is drawn then
        :raises ValueError: if state or episode_start do not fit
        """
        last = self._last(candidates)
        if last is None:
            return candidates
        kept, replaced = candidates.tensor_split([candidates.shape[1] - n_warm(candidates.shape[1])], dim=1)
        if quasi_random:
            noise = normal_quantiles(replaced.shape[1], base.mean)
        else:
            noise = th.randn(replaced.shape, generator=generator, device=replaced.device, dtype=replaced.dtype)
        draws = last.mean.unsqueeze(1) + base.std.unsqueeze(1) * noise
        return th.cat([kept, th.where(last.known[:, None, None], draws, replaced)], dim=1)

    def keep(self, mean: th.Tensor) -> None:
        """
        :param mean: ``(B, A)`` of the plans a refinement has ended with, before the squash
        """
        # At a wall a descent leaves each plan a bit further out, to where the draws around it are all the same action
        edge = math.atanh(LARGEST_ACTION)
        self.state = (mean.clamp(-edge, edge).cpu().numpy(),)

    def _last(self, like: th.Tensor) -> _LastPlans | None:
        shape = (like.shape[0], like.shape[2])
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
    :param n_particles: how many candidates there are, at least 2
    :return: how many of them are drawn around the last plan
    """
    return max(1, int(WARM_PART * n_particles))
