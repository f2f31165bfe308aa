"""Numbers as people have them become Python's own; what is none is refused in one sentence."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch as th

from sb3_energy import checks

INTEGERS = [8, np.int64(8), np.int32(8), np.uint8(8), np.array(8), th.tensor(8)]
NUMBERS = [0.5, np.float64(0.5), np.float32(0.5), np.float16(0.5), np.array(0.5), np.array(0.5, ">f4"), th.tensor(0.5)]
BOOLS = [True, np.True_, np.array(True), th.tensor(True)]
NO_NUMBERS = ["1", None, True, np.True_, 1j, np.complex64(1), Fraction(1, 2), [1.0], np.array([1.0]), th.tensor([1.0])]


@pytest.mark.parametrize("value", INTEGERS, ids=repr)
def test_integers(value):
    found = checks.check_integer("n", value, minimum=8)
    assert type(found) is int and found == 8
    with pytest.raises(ValueError, match="n must be at least 9, got"):
        checks.check_integer("n", value, minimum=9)


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_numbers(value):
    for check in (
        checks.check_number,
        checks.check_part,
        checks.check_fraction,
        checks.check_unit_interval,
        checks.check_positive,
        checks.check_tolerance,
    ):
        found = check("x", value)
        assert type(found) is float and found == 0.5
    assert type(checks.check_schedule("x", value, minimum=0.0)) is float


@pytest.mark.parametrize("value", BOOLS, ids=repr)
def test_bools(value):
    assert checks.check_bool("b", value) is True
    with pytest.raises(TypeError, match="n must be an integer, got"):
        checks.check_integer("n", value)
    with pytest.raises(TypeError, match="x must be a number, got"):
        checks.check_number("x", value)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match="n must be an integer, got"):
        checks.check_integer("n", value)
    with pytest.raises(TypeError, match="x must be a number, got"):
        checks.check_number("x", value)


@pytest.mark.parametrize("value", [1, 0.0, np.int64(1), "True", None], ids=repr)
def test_what_is_no_bool_is_refused(value):
    with pytest.raises(TypeError, match="b must be True or False, got"):
        checks.check_bool("b", value)


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), th.tensor(float("nan"))], ids=repr)
def test_nan_and_infinity_are_refused(value):
    for check in (
        checks.check_number,
        checks.check_part,
        checks.check_fraction,
        checks.check_unit_interval,
        checks.check_positive,
        checks.check_tolerance,
    ):
        with pytest.raises(ValueError, match=r"x must (be finite|lie in .*), got"):
            check("x", value)


def test_plain_goes_into_lists_tuples_and_dicts_and_leaves_the_rest():
    array, thing = np.zeros(2), object()
    given = dict(a=[np.int64(1), (np.float32(0.5), "x")], b=dict(c=np.True_), d=array, e=thing, f=None)
    found = checks.plain(given)
    assert repr(found | dict(d=0, e=0)) == "{'a': [1, (0.5, 'x')], 'b': {'c': True}, 'd': 0, 'e': 0, 'f': None}"
    assert found["d"] is array and found["e"] is thing and given["b"]["c"] is np.True_


def test_fields_of_a_frozen_dataclass_become_plain():
    @dataclass(frozen=True)
    class Own:
        n: int = 3

        def __post_init__(self) -> None:
            checks.plain_fields(self)

    assert type(Own(np.int64(4)).n) is int


def test_a_choice_that_is_none_is_answered_with_the_nearest():
    assert checks.check_choice("box", "tanh", ["tanh", "reflect"]) == "tanh"
    assert checks.check_choice("box", None, [None, "reflect"]) is None
    with pytest.raises(ValueError, match=r"^box must be one of \['reflect'\] or None, got 'tanh'$"):
        checks.check_choice("box", "tanh", [None, "reflect"])
    with pytest.raises(ValueError) as error:
        checks.check_choice("box", "Reflct", ["tanh", "reflect"])
    assert str(error.value) == "box must be one of ['tanh', 'reflect'], got 'Reflct'; did you mean 'reflect'?"
    for value in (3, ["tanh"], None, "zzz"):
        with pytest.raises(ValueError, match=r"box must be one of \['tanh', 'reflect'\], got [^;]*$"):
            checks.check_choice("box", value, ["tanh", "reflect"])


def test_an_unknown_keyword_is_answered_with_the_nearest():
    checks.check_keywords("refiner_kwargs", dict(step_size=1), ["step_size"])
    with pytest.raises(TypeError) as error:
        checks.check_keywords("refiner_kwargs", dict(stepsize=1), ["step_size"])
    assert str(error.value) == "refiner_kwargs must be among ['step_size'], got ['stepsize']; did you mean 'step_size'?"
    with pytest.raises(TypeError, match=r"got \[3\]$"):
        checks.check_keywords("refiner_kwargs", {3: 1}, ["step_size"])


def test_verbose_may_be_a_bool_as_in_sb3():
    assert [checks.check_verbose(value) for value in (True, np.False_, np.int64(2))] == [1, 0, 2]
    for value, error in ((-1, ValueError), ("x", TypeError), (1.0, TypeError)):
        with pytest.raises(error, match=r"^verbose must be"):
            checks.check_verbose(value)
