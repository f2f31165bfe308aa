"""Small models for the tests of PGAC."""

from functools import partial

import pytest

from tests.models import small_model


@pytest.fixture
def make_model():
    """A function that makes a small model; its keyword arguments are PGAC's."""
    return partial(small_model, "pgac")
