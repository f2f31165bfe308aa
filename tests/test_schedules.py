import itertools
import math
import pickle
from functools import partial

import pytest

from sb3_energy.schedules import Constant, Cosine, LinearRamp, Polynomial, SquareRoot, value_at
from sb3_energy.types import Tick

SCHEDULES = [Constant(0.3), Polynomial(0.1, 1e-5), Cosine(1.0, 0.1), LinearRamp(start=0.5), SquareRoot(LinearRamp(start=0.5))]


@pytest.mark.parametrize("n_steps", [1, 2, 5, 100])
def test_remaining_falls_from_one_to_zero_over_the_steps(n_steps):
    remaining = [Tick(k, n_steps).remaining for k in range(n_steps)]
    assert remaining == [1.0 - k / max(n_steps - 1, 1) for k in range(n_steps)]
    assert remaining[0] == 1.0 and remaining[-1] == (0.0 if n_steps > 1 else 1.0)
    assert [Tick(k, n_steps).is_last for k in range(n_steps)] == [False] * (n_steps - 1) + [True]
    assert sum(Tick(k, n_steps).dt for k in range(n_steps)) == pytest.approx(1.0)


def test_polynomial_is_implicit_behavioral_cloning_s_decay():
    schedule = Polynomial(initial=0.1, final=1e-5, power=2.0)
    n_steps = 100
    for k in range(n_steps):
        expected = (0.1 - 1e-5) * (1.0 - k / (n_steps - 1)) ** 2 + 1e-5
        assert schedule(Tick(k, n_steps).remaining) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", [Polynomial(0.4, 0.1, 1.0), Polynomial(0.4, 0.1), Cosine(0.4, 0.1), LinearRamp(0.4, 0.1)])
def test_schedules_start_and_end_where_they_say_and_fall_in_between(schedule):
    values = [schedule(1.0 - k / 50) for k in range(51)]
    assert values[0] == pytest.approx(0.4) and values[-1] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(values))


def test_cosine_is_half_a_cosine():
    for remaining in (1.0, 0.8, 0.5, 0.1, 0.0):
        assert Cosine(0.0, 1.0)(remaining) == pytest.approx(math.cos(0.5 * math.pi * remaining) ** 2)


def test_ramp_waits_and_rises():
    ramp = LinearRamp(initial=0.2, final=1.0, start=0.5)
    assert [ramp(r) for r in (1.0, 0.7, 0.5)] == [0.2, 0.2, 0.2]
    assert ramp(0.25) == pytest.approx(0.6) and ramp(0.0) == pytest.approx(1.0)


def test_the_square_root_of_a_temperature_is_the_noise_s_scale():
    assert [SquareRoot(LinearRamp(0.0, 4.0))(r) for r in (1.0, 0.75, 0.0)] == [0.0, 1.0, 2.0]


def test_value_at_takes_numbers_and_schedules():
    assert value_at(0.3, 0.5) == 0.3
    assert value_at(Polynomial(1.0, 0.0), 0.5) == 0.25
    assert value_at(math.sqrt, 0.25) == 0.5


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_values(schedule):
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    with pytest.raises(AttributeError):
        schedule.anything = 3.0
    assert all(isinstance(schedule(r), float) for r in (1.0, 0.5, 0.0))


@pytest.mark.parametrize("start", [-0.1, 1.0])
def test_ramp_refuses_a_start_outside(start):
    with pytest.raises(ValueError, match=r"start must lie in \[0, 1\)"):
        LinearRamp(start=start)


@pytest.mark.parametrize("power", [0.0, -1.0])
def test_polynomial_refuses_a_power_that_does_not_fall(power):
    with pytest.raises(ValueError, match="power must be above 0"):
        Polynomial(1.0, 0.0, power)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", True, None])
def test_what_is_no_finite_number_is_refused(value):
    expected = ValueError if isinstance(value, float) else TypeError
    for make in (Constant, partial(Polynomial, 1.0), partial(Polynomial, 1.0, 0.0), partial(Cosine, 1.0), LinearRamp):
        with pytest.raises(expected, match=r"\w+ must be (finite|a number), got"):
            make(value)
