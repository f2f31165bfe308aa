"""Schedules of a refinement: functions of the ``remaining`` part of it, which falls from 1 to 0.

They have SB3's ``Schedule`` type, but ``remaining`` is that of one refinement, not of the training: with ``K`` steps,
``remaining = 1 - k / max(K - 1, 1)`` at step ``k``.
"""

import math
from dataclasses import dataclass
from typing import Any

from stable_baselines3.common.type_aliases import Schedule

from sb3_energy.checks import check_finite_number, check_fraction, check_number, plain_fields


@dataclass(frozen=True)
class Constant:
    """
    The same value at every step.

    :param value: the value
    :raises ValueError: if it is NaN or infinity
    :raises TypeError: if it is not a number
    """

    value: float

    def __post_init__(self) -> None:
        _check_fields(self, "value")

    def __call__(self, remaining: float) -> float:
        return self.value


@dataclass(frozen=True)
class Polynomial:
    """
    ``final + (initial - final) * remaining ** power``.
    The step size of implicit behavioral cloning's Langevin sampler (Florence et al. 2021, appendix B.3).

    :param initial: value at the first step
    :param final: value at the last step
    :param power: 1 is a straight line
    :raises ValueError: if the power is not positive, or a number is NaN or infinity
    :raises TypeError: if something is not a number
    """

    initial: float
    final: float
    power: float = 2.0

    def __post_init__(self) -> None:
        _check_fields(self, "initial", "final")
        check_number("power", self.power, strict=True)

    def __call__(self, remaining: float) -> float:
        return self.final + (self.initial - self.final) * remaining**self.power


@dataclass(frozen=True)
class Geometric:
    """
    ``final * (initial / final) ** remaining``: the same factor from each step to the next. As the step size of a chain with a
    Metropolis test it needs no knowledge of the target's width: each step leaves the target as it is, and one of them fits.

    :param initial: value at the first step
    :param final: value at the last step
    :raises ValueError: if one is not positive, or NaN or infinity
    :raises TypeError: if one is not a number
    """

    initial: float
    final: float

    def __post_init__(self) -> None:
        plain_fields(self)
        for name in ("initial", "final"):
            check_number(name, getattr(self, name), strict=True)

    def __call__(self, remaining: float) -> float:
        return self.final * (self.initial / self.final) ** remaining


@dataclass(frozen=True)
class Cosine:
    """
    Half a cosine from ``initial`` to ``final`` (Loshchilov and Hutter 2017, equation 5, without restarts).

    :param initial: value at the first step
    :param final: value at the last step
    :raises ValueError: if one is NaN or infinity
    :raises TypeError: if one is not a number
    """

    initial: float
    final: float

    def __post_init__(self) -> None:
        _check_fields(self, "initial", "final")

    def __call__(self, remaining: float) -> float:
        return self.final + (self.initial - self.final) * 0.5 * (1.0 - math.cos(math.pi * remaining))


@dataclass(frozen=True)
class LinearRamp:
    """
    ``initial`` for the first part of the refinement, then a straight line up (or down) to ``final``.
    As a noise scale, 0 then rising to 1: the switch from transport to equilibrium of the JKO scheme
    (Energy Matching, Balcerak et al. 2025, section 3).

    :param initial: value until the ramp starts
    :param final: value at the last step
    :param start: part of the refinement, in [0, 1), after which the ramp starts
    :raises ValueError: if the start lies outside, or a number is NaN or infinity
    :raises TypeError: if something is not a number
    """

    initial: float = 0.0
    final: float = 1.0
    start: float = 0.0

    def __post_init__(self) -> None:
        _check_fields(self, "initial", "final")
        check_fraction("start", self.start)

    def __call__(self, remaining: float) -> float:
        progress = max(1.0 - remaining - self.start, 0.0) / (1.0 - self.start)
        return self.initial + (self.final - self.initial) * progress


@dataclass(frozen=True)
class Squared:
    """
    Another schedule's value squared: the Langevin step that a leapfrog of Hamiltonian Monte Carlo amounts to.

    :param schedule: the other schedule
    """

    schedule: Schedule

    def __call__(self, remaining: float) -> float:
        return self.schedule(remaining) ** 2


@dataclass(frozen=True)
class SquareRoot:
    """
    The square root of another schedule's value: the noise scale of a Langevin step whose temperature is that schedule.

    :param schedule: the other schedule, nowhere negative
    """

    schedule: Schedule

    def __call__(self, remaining: float) -> float:
        return math.sqrt(self.schedule(remaining))


def _check_fields(schedule: Any, *names: str) -> None:
    plain_fields(schedule)
    for name in names:
        check_finite_number(name, getattr(schedule, name))


def value_at(schedule: float | Schedule, remaining: float) -> float:
    """
    Evaluate a constant or scheduled value.

    :param schedule: a number, or a function of the remaining part
    :param remaining: part of the refinement that remains, in [0, 1]
    :return: the number at that point
    """
    return schedule(remaining) if callable(schedule) else schedule
