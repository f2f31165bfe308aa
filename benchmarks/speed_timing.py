"""Timing of several things in turn, in one process, and their ratios round by round."""

import gc
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from benchmarks.statistics import Interval

Call = Callable[[int], object]
"""Does something so many times."""
Clock = Callable[[], float]


class Fit(NamedTuple):
    """
    A straight line through costs.

    :param slope: cost of one more
    :param intercept: cost of none
    :param r_squared: part of the costs' variance that the line explains
    """

    slope: float
    intercept: float
    r_squared: float


def seconds_of(call: Call, n: int, clock: Clock = time.process_time) -> float:
    """
    :param call: what to time
    :param n: how many times it is done
    :param clock: gives seconds; the process's CPU time, of all its threads, unless told otherwise
    :return: seconds of one
    """
    enabled = gc.isenabled()
    gc.disable()  # the models of all cases are alive, and a collection would charge one case for the others
    try:
        start = clock()
        call(n)
        return (clock() - start) / n
    finally:
        if enabled:
            gc.enable()


def calibrated(call: Call, seconds: float, warm_up: float = 0.0, clock: Clock = time.process_time) -> int:
    """
    :param call: what will be timed; it is done a few times, so whatever compiles has compiled
    :param seconds: how long a slice shall be
    :param warm_up: for about how many seconds it is done before; libraries prepare for each shape that they meet
    :param clock: gives seconds
    :return: how many times to do it in a slice, at least once
    """
    call(1)
    n = max(1, round(seconds / max(seconds_of(call, 1, clock), 1e-9)))
    if n > 1:
        call(n)
        n = max(1, round(seconds / max(seconds_of(call, n, clock), 1e-9)))
        call(max(1, round(n * warm_up / seconds)))
    return n


def interleaved(
    calls: Mapping[str, Call],
    rounds: int,
    seconds: float,
    counts: Mapping[str, int] | None = None,
    warm_up: float = 0.0,
    clock: Clock = time.process_time,
) -> dict[str, np.ndarray]:
    """
    Each round times everything once, one after the other, so that what slows the machine down slows all of it.

    :param calls: what to time, by name
    :param rounds: how many
    :param seconds: of one slice, where ``counts`` says nothing
    :param counts: how many times each is done in a slice (``None``: as often as fits into ``seconds``)
    :param warm_up: seconds for which each is done before, where ``counts`` says nothing
    :param clock: gives seconds
    :return: name -> seconds of one, for each round
    """
    if counts is None:
        counts = {name: calibrated(call, seconds, warm_up, clock) for name, call in calls.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for round_ in range(rounds):
        gc.collect()
        first = round_ * max(1, len(names) // 3) % len(names)  # so that the same one is not always first or last
        for name in names[first:] + names[:first]:
            found[name].append(seconds_of(calls[name], counts[name], clock))
    return {name: np.array(values) for name, values in found.items()}


def speedup(baseline: np.ndarray, case: np.ndarray) -> Interval:
    """
    :param baseline: seconds in each round
    :param case: seconds in the same rounds
    :return: median over rounds of ``baseline / case``, and its quartiles; above 1 the case is faster
    """
    low, middle, high = np.quantile(np.asarray(baseline) / np.asarray(case), [0.25, 0.5, 0.75])
    return Interval(float(middle), float(low), float(high))


def linear_fit(x: np.ndarray, costs: np.ndarray) -> Fit:
    """
    :param x: at least three different numbers
    :param costs: at them
    :return: the line of least squares
    :raises ValueError: if there are fewer than three points, through which a line says nothing
    """
    x, costs = np.asarray(x, dtype=float), np.asarray(costs, dtype=float)
    if len(np.unique(x)) < 3:
        raise ValueError(f"x must have at least 3 different values, got {x.tolist()}")
    slope, intercept = np.polyfit(x, costs, 1)
    residuals = costs - (slope * x + intercept)
    spread = np.square(costs - costs.mean()).sum()
    return Fit(float(slope), float(intercept), float(1.0 - np.square(residuals).sum() / spread) if spread > 0.0 else 1.0)
