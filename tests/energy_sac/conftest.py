"""Small models for the tests of EnergySAC, with Langevin and with MPPI, and of PGAC where they are those of any algorithm."""

from functools import partial

import pytest

from tests.models import ALGORITHMS, REFINED, small_model


@pytest.fixture(params=sorted(ALGORITHMS))
def kind(request):
    """Which small model."""
    return request.param


@pytest.fixture
def algorithm(kind):
    """Its class."""
    return ALGORITHMS[kind]


@pytest.fixture
def refined(kind):
    """Policy arguments of a small refined policy."""
    return REFINED[kind] | dict(net_arch=[16])


@pytest.fixture
def make_model(kind):
    """A function that makes a small model; its keyword arguments are the algorithm's."""
    return partial(small_model, kind)
