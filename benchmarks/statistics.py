"""
Interquartile mean and bootstrap intervals, following "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(Agarwal et al. 2021). What is resampled are the scores of independent runs, never episodes of one run.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import trim_mean

Scores = Sequence[float] | np.ndarray


class Interval(NamedTuple):
    """A figure and the bounds of its confidence interval."""

    value: float
    low: float
    high: float


def interquartile_mean(scores: Scores, axis: int = -1) -> np.ndarray:
    """
    :param scores: one score per run
    :param axis: the runs' axis
    :return: the mean without the lowest and the highest quarter, rounded down: below four runs it is the plain mean
    """
    return trim_mean(np.asarray(scores, dtype=float), 0.25, axis=axis)


def resampled(scores: Scores, rng: np.random.Generator, n_resamples: int) -> np.ndarray:
    """
    :param scores: one score (or one curve) per run, runs first
    :param rng: the source of randomness
    :param n_resamples: how many samples to draw
    :return: of shape (n_resamples, n_runs, ...), runs drawn with replacement
    """
    values = np.asarray(scores, dtype=float)
    return values[rng.integers(len(values), size=(n_resamples, len(values)))]


def bootstrap(
    strata: Sequence[Scores],
    statistic: Callable[..., np.ndarray],
    confidence: float = 0.95,
    n_resamples: int = 5000,
    seed: int = 0,
) -> Interval:
    """
    Percentile interval of the stratified bootstrap: runs are resampled within each stratum, never across.

    :param strata: independent groups of runs
    :param statistic: a function of one array per stratum, with runs on the second of two axes
    :param confidence: the interval's level
    :param n_resamples: how many resamples
    :param seed: of the resampling, so that a report is reproducible
    :return: the statistic of the scores themselves and its interval
    """
    rng = np.random.default_rng(seed)
    value = float(statistic(*[np.asarray(scores, dtype=float)[None] for scores in strata])[0])
    draws = statistic(*[resampled(scores, rng, n_resamples) for scores in strata])
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def _difference(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return interquartile_mean(scores, axis=1) - interquartile_mean(reference, axis=1)


def _row_iqm(scores: np.ndarray) -> np.ndarray:
    return interquartile_mean(scores, axis=1)


def iqm_interval(scores: Scores) -> Interval:
    """
    :param scores: one score per run
    :return: interquartile mean with its 95 % bootstrap interval
    """
    return bootstrap([scores], _row_iqm)


def difference_interval(scores: Scores, reference: Scores) -> Interval:
    """
    :param scores: one score per run
    :param reference: the scores to compare with, one stratum of their own
    :return: difference of the interquartile means with its 95 % bootstrap interval
    """
    return bootstrap([scores, reference], _difference)


def iqm_band(curves: np.ndarray, confidence: float = 0.95, n_resamples: int = 2000) -> tuple[np.ndarray, ...]:
    """
    :param curves: of shape (n_runs, n_evaluations)
    :param confidence: the pointwise interval's level
    :param n_resamples: how many resamples
    :return: interquartile mean over runs and the two bounds, each of shape (n_evaluations,)
    """
    draws = interquartile_mean(resampled(curves, np.random.default_rng(0), n_resamples), axis=1)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return interquartile_mean(curves, axis=0), low, high
